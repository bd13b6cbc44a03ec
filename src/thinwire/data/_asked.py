"""What a user wrote, taken apart: `word,key=value,key=value`; and what they may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from thinwire.errors import DataError


def settings(spoken: str, known: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The word before the first comma, and the settings after it.

    Raises:
        DataError: a piece that is no `key=value`, a key that is not among `known` or comes twice, or a key without a value.

    Example:
        >>> settings("hf:roneneldan/TinyStories,split=train", ["config", "split", "field"])
        ('hf:roneneldan/TinyStories', {'split': 'train'})
        >>> settings("bpe,vocab", ["vocab"])
        Traceback (most recent call last):
        ...
        thinwire.errors.DataError: 'bpe,vocab': 'vocab' is no setting such as key=value; bpe has: vocab
    """
    word, *pieces = (piece.strip() for piece in spoken.split(","))
    has = f"{word} has: {', '.join(known)}" if known else f"{word} has no settings"
    given: dict[str, str] = {}
    for piece in pieces:
        key, _, value = (part.strip() for part in piece.partition("="))
        if not key or not value:
            raise DataError(f"{spoken!r}: {piece!r} is no setting such as key=value; {has}")
        if key not in known:
            raise DataError(f"{spoken!r}: there is no setting {key!r}{meant(key, known)} {has[0].upper() + has[1:]}")
        if key in given:
            raise DataError(f"{spoken!r}: {key} is given twice; once is enough")
        given[key] = value
    return word, given


def meant(word: str, known: Iterable[str]) -> str:
    """The end of a sentence: a question with the nearest known words, or a full stop.

    Example:
        >>> meant("bytes", ["byte", "bpe"]), meant("xyz", ["byte", "bpe"])
        ("; did you mean 'byte'?", '.')
    """
    near = difflib.get_close_matches(word, list(known), n=3)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else "."


def path_from(spoken: str, what: str) -> Path:
    """The path that was given for a `what`, once it is known that the file system can be asked for it."""
    try:
        path = Path(spoken).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # a name too long, a folder that may not be entered, a user without a home
        raise DataError(f"the {what} {spoken!r} cannot be read: {one_line(error)}") from error
    return path


def absent(path: Path, words: Sequence[str] = ()) -> str:
    """Where a path stops existing and what stands there instead; `words` are what else may be said in place of a path."""
    parent = path.parent
    if not parent.is_dir():
        return f"the folder {str(parent)!r} does not exist{meant(str(path), words)}"
    try:
        beside = sorted(entry.name for entry in parent.iterdir())
    except OSError:
        beside = []
    return f"there is no such file or folder in {str(parent.resolve())!r}{meant(path.name, [*words, *beside])}"


@contextmanager
def extra(what: str, name: str = "train") -> Iterator[None]:
    """Around the import of an optional package, which the extra `name` of thinwire brings, for a `what` that needs it."""
    try:
        yield
    except ImportError as error:
        raise DataError(f"{what} needs a package that cannot be imported ({one_line(error)}): pip install 'thinwire[{name}]'") from error


def one_line(error: BaseException, most: int = 300) -> str:
    """What an error of another library says, without its line breaks and cut where it rambles.

    Example:
        >>> one_line(OSError("no route\\n  to host"))
        'no route to host'
    """
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= most else said[: most - 2] + " …"
