"""Clean documents before they are tokenised: each is passed on, changed, or dropped.

A cleaner takes a document and returns it, or an empty one, which is dropped.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

from thinwire.errors import DataError
from thinwire.text.words import near

Cleaner = Callable[[bytes], bytes]


def tidied(document: bytes) -> bytes:
    r"""Normalise documents: composed characters (Unicode's NFC), plain newlines, no trailing
    spaces, at most two empty lines, no control characters.

    Example:
        >>> tidied("cafe\u0301  \r\nau lait\x0b\n\n\n\n\nend".encode()).decode()
        'café\nau lait\n\n\nend'
    """
    text = unicodedata.normalize("NFC", document.decode()).replace("\r\n", "\n").replace("\r", "\n")
    text = "".join(
        letter for letter in text if letter in "\n\t" or unicodedata.category(letter) != "Cc"
    )
    lines = [line.rstrip() for line in text.split("\n")]
    return "\n".join(
        line for at, line in enumerate(lines) if line or at < 2 or lines[at - 1] or lines[at - 2]
    ).encode()


def long_enough(least: int = 200) -> Cleaner:
    """Drop documents of fewer bytes."""
    return lambda document: document if len(document) >= least else b""


def unseen() -> Cleaner:
    """Drop repeated documents; each takes 16 bytes of memory."""
    seen: set[bytes] = set()

    def clean(document: bytes) -> bytes:
        digest = hashlib.blake2b(document, digest_size=16).digest()
        if digest in seen:
            return b""
        seen.add(digest)
        return document

    return clean


CLEANERS: dict[str, Callable[[], Cleaner]] = {
    "tidied": lambda: tidied,
    "long_enough": long_enough,
    "unseen": unseen,
}


def cleaners(names: Sequence[str]) -> list[Cleaner]:
    """Return cleaners by their names.

    Raises:
        DataError: none has that name.

    Example:
        >>> cleaners(["tidy"])
        Traceback (most recent call last):
        ...
        thinwire.errors.DataError: no cleaner is called 'tidy'; did you mean 'tidied'?...
    """
    for name in names:
        if name not in CLEANERS:
            raise DataError(
                f"no cleaner is called {name!r}{near(name, CLEANERS)} There are: "
                f"{', '.join(CLEANERS)}"
            )
    return [CLEANERS[name]() for name in names]


def cleaned(documents: Iterable[bytes], by: Sequence[Cleaner]) -> Iterator[bytes]:
    """Pass documents through all cleaners, one after the other.

    Example:
        >>> list(cleaned([b"a  ", b"", b"a", b"b"], [tidied, unseen()]))
        [b'a', b'b']
    """
    for each in documents:
        document = each
        for clean in by:
            document = clean(document) if document else b""
        if document:
            yield document
