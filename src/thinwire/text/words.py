"""Read settings of a command line: `name,key=value,key=value`, each value of its key's type.

A reader gathers every problem, so that the user gets them all in one error.
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


def name_and_settings(text: str) -> tuple[str, list[str]]:
    """Split `text` into its name and its settings.

    Example:
        >>> name_and_settings("diloco, period=60,lr=0.5")
        ('diloco', ['period=60', 'lr=0.5'])
    """
    name, *settings = (piece.strip() for piece in text.split(","))
    return name, settings


def near(word: str, valid: Collection[str], most: int = 1) -> str:
    """End a sentence about an unknown word: with `most` valid ones like it, or with a full stop.

    Example:
        >>> "no setting 'ranks'" + near("ranks", ["rank", "start"])
        "no setting 'ranks'; did you mean 'rank'?"
    """
    alike = difflib.get_close_matches(word, valid, n=most)
    return f"; did you mean {' or '.join(map(repr, alike))}?" if alike else "."


def settings(
    name: str, pairs: Sequence[str], kinds: Mapping[str, Any], problems: list[str]
) -> dict[str, Any]:
    """Read `key=value` texts into values.

    Args:
        name: whose settings they are, for the messages.
        pairs: the texts.
        kinds: the type of each valid key: int, float, bool, str, None, or a union of them.
        problems: gets a sentence for every text that cannot be read.

    Returns:
        The value of each key that could be read.

    Example:
        >>> problems = []
        >>> kinds = {"rank": int, "start": int}
        >>> settings("powersgd", ["rank=4", "start=soon", "rang=2"], kinds, problems)
        {'rank': 4}
        >>> print(*problems, sep="\\n")
        powersgd: setting 'start': expected an integer, got 'soon'
        powersgd has no setting 'rang'; did you mean 'rank'? powersgd has: rank, start
    """
    valid = f"{name} has: {', '.join(kinds) or 'no settings'}"
    values: dict[str, Any] = {}
    # Every problem is noted and reading goes on, so that one error has all of them.
    for setting in pairs:
        key, equals, text = (piece.strip() for piece in setting.partition("="))
        if not equals:
            problems.append(f"{name}: expected key=value, got {setting!r}; {valid}")
        elif key not in kinds:
            problems.append(f"{name} has no setting {key!r}{near(key, kinds)} {valid}")
        elif key in values:
            problems.append(f"{key} is given twice; once is enough")
        else:
            try:
                values[key] = value(text, kinds[key])
            except ValueError as error:
                problems.append(f"{name}: setting {key!r}: {error}")
    return values


def value(text: str, kind: Any) -> Any:
    """Read `text` as a value of `kind`; of a union, as the first of int, float, bool and str.

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
    # From narrow to wide: "3" is an integer before a number, and anything is a text.
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
        wanted -= {int}  # "an integer or a number" adds nothing to "a number"
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
    """Lay rows out in columns: the first `left` cells to the left, the others to the right.

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
    """Return the first line of an error's message, or its kind where it has none.

    Example:
        >>> first_line(OSError("no route\\nto host")), first_line(KeyError())
        ('no route', 'KeyError')
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def error_text(error: BaseException, most: int = 300) -> str:
    """Return an error's message on one line, cut to `most` characters; its kind without one.

    Example:
        >>> error_text(OSError("no route\\n  to host"))
        'no route to host'
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[: most - 2] + " …"


_PARSING = threading.Lock()


def expression(text: str) -> ast.expr:
    """Parse an expression, one thread at a time.

    CPython 3.11's parser counts its depth for all threads together.

    Raises:
        SyntaxError: it is none.
    """
    with _PARSING:
        return ast.parse(text, mode="eval").body
