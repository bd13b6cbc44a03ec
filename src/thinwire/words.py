"""Settings as one says them on a command line: `name,key=value,key=value`, each value of the type
that its key has.

A reader gathers every reason why words cannot be, so that the user is told once.
"""

from __future__ import annotations

import ast
import difflib
import math
import threading
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any

EXPECTED = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a word",
    types.NoneType: "none",
}  # tried in this order


def pieces(text: str) -> tuple[str, list[str]]:
    """The name and the settings of `text`.

    Example:
        >>> pieces("diloco, period=60,lr=0.5")
        ('diloco', ['period=60', 'lr=0.5'])
    """
    name, *settings = (piece.strip() for piece in text.split(","))
    return name, settings


def near(word: str, known: Collection[str], most: int = 1) -> str:
    """The end of a sentence about an unknown word: the known ones that look like it (`most` of
    them), or a full stop.

    Example:
        >>> "no setting 'ranks'" + near("ranks", ["rank", "start"])
        "no setting 'ranks'; did you mean 'rank'?"
    """
    found = difflib.get_close_matches(word, known, n=most)
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else "."


def settings(
    name: str, said: Sequence[str], kinds: Mapping[str, Any], problems: list[str]
) -> dict[str, Any]:
    """`key=value` pieces as values.

    Args:
        name: whose settings they are, for the messages.
        said: the pieces.
        kinds: the type of each known key: int, float, bool, str, None, or a union of them.
        problems: gets a sentence for every piece that cannot be.

    Returns:
        The value of each key that can be.

    Example:
        >>> problems = []
        >>> settings("powersgd", ["rank=4", "start=soon", "rang=2"], {"rank": int, "start": int}, problems)
        {'rank': 4}
        >>> print(*problems, sep="\\n")
        powersgd: setting 'start': expected an integer, got 'soon'
        powersgd has no setting 'rang'; did you mean 'rank'? powersgd has: rank, start
    """
    known = f"{name} has: {', '.join(kinds) or 'no settings'}"
    values: dict[str, Any] = {}
    for setting in said:
        key, equals, text = (piece.strip() for piece in setting.partition("="))
        if not equals:
            problems.append(f"{name}: expected key=value, got {setting!r}; {known}")
        elif key not in kinds:
            problems.append(f"{name} has no setting {key!r}{near(key, kinds)} {known}")
        elif key in values:
            problems.append(f"{key} is given twice; once is enough")
        else:
            try:
                values[key] = value(text, kinds[key])
            except ValueError as error:
                problems.append(f"{name}: setting {key!r}: {error}")
    return values


def value(text: str, kind: Any) -> Any:
    """`text` as a value of `kind`; of a union, the first of int, float, bool and str that it can
    be.

    Raises:
        ValueError: it cannot; the message says what was expected.

    Example:
        >>> value("3", float | int | None), value("none", int | None), value("true", bool)
        (3, None, True)
        >>> value("inf", float)
        Traceback (most recent call last):
        ...
        ValueError: expected a number, got 'inf'
    """
    wanted = set(typing.get_args(kind) or (kind,))
    for each, parse in (
        (types.NoneType, _none),
        (int, int),
        (float, _finite),
        (bool, _switch),
        (str, _word),
    ):
        if each in wanted:
            try:
                return parse(text)
            except ValueError:
                continue
    if float in wanted:
        wanted -= {int}  # "an integer or a number" says no more than "a number"
    raise ValueError(
        f"expected {' or '.join(words for each, words in EXPECTED.items() if each in wanted)}, "
        f"got {text!r}"
    )


def _none(text: str) -> None:
    if text != "none":
        raise ValueError


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


def _switch(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError
    return text == "true"


def _word(text: str) -> str:
    if not text:
        raise ValueError
    return text


def columns(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Rows as lines of columns: the first `left` cells begin at the left, the others end at the
    right.

    Example:
        >>> print(*columns([("", "sent"), ("host0", "3 MB")]), sep="\\n")
               sent
        host0  3 MB
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(wide) if i < left else cell.rjust(wide)
            for i, (cell, wide) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its kind where it says nothing.

    Example:
        >>> first_line(OSError("no route\\nto host")), first_line(KeyError())
        ('no route', 'KeyError')
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def told(error: BaseException, most: int = 300) -> str:
    """What an error of another library says, without its line breaks and cut where it rambles.

    Example:
        >>> told(OSError("no route\\n  to host"))
        'no route to host'
    """
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= most else said[: most - 2] + " …"


_PARSING = threading.Lock()


def expression(text: str) -> ast.expr:
    """The tree of an expression; one thread at a time, as CPython 3.11's parser counts its depth
    for all of them together.

    Raises:
        SyntaxError: it is none.
    """
    with _PARSING:
        return ast.parse(text, mode="eval").body
