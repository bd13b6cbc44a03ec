"""Read what a user wrote as `word,key=value,key=value`, and suggest what it may have meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from thinwire.errors import DataError
from thinwire.text import words


def settings(spec: str, allowed: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return the word before the first comma, and the settings after it.

    Raises:
        DataError: a piece that is no `key=value`, a key that is not among `allowed` or comes twice,
            or a key without a value.

    Example:
        >>> settings("hf:roneneldan/TinyStories,split=train", ["config", "split", "field"])
        ('hf:roneneldan/TinyStories', {'split': 'train'})
        >>> settings("bpe,vocab", ["vocab"])
        Traceback (most recent call last):
        ...
        thinwire.errors.DataError: bpe: expected key=value, got 'vocab'; bpe has: vocab
    """
    word, pairs = words.name_and_settings(spec)
    problems: list[str] = []
    given = words.settings(word, pairs, dict.fromkeys(allowed, str), problems)
    if problems:
        raise DataError("\n".join(problems))
    return word, given


def path_from(spec: str, what: str) -> Path:
    """Return the path that was given for a `what`, if the file system accepts it."""
    try:
        path = Path(spec).expanduser()
        path.exists()
    except (
        OSError,
        RuntimeError,
    ) as error:  # a name too long, a folder that may not be entered, a user without a home
        raise DataError(f"the {what} {spec!r} cannot be read: {words.error_text(error)}") from error
    return path


def absent(path: Path, others: Sequence[str] = ()) -> str:
    """Describe where a path stops existing and what exists there; `others` are other values that
    are allowed in its place."""
    parent = path.parent
    if not parent.is_dir():
        return f"the folder {str(parent)!r} does not exist{words.near(str(path), others, 3)}"
    try:
        beside = sorted(entry.name for entry in parent.iterdir())
    except OSError:
        beside = []
    return (
        "there is no such file or folder in "
        f"{str(parent.resolve())!r}{words.near(path.name, [*others, *beside], 3)}"
    )


@contextmanager
def extra(what: str, name: str = "train") -> Iterator[None]:
    """Wrap the import of an optional package that the extra `name` of thinwire installs, for a
    `what` that needs it."""
    try:
        yield
    except ImportError as error:
        raise DataError(
            f"{what} needs a package that cannot be imported ({words.error_text(error)}): "
            "pip install "
            f"'thinwire[{name}]'"
        ) from error
