"""What is done to documents before they are tokenised: each is handed on, changed, or dropped.

A cleaner takes a document and returns it, or an empty one, which is dropped.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

from thinwire.errors import DataError
from thinwire.words import near

Cleaner = Callable[[bytes], bytes]


def tidied(document: bytes) -> bytes:
    r"""Composed characters (Unicode's NFC), lines that end in a newline alone and without spaces,
    two empty lines at most, no controls.

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
    """Documents of so many bytes; shorter ones are stubs, and are dropped."""
    return lambda document: document if len(document) >= least else b""


def unseen() -> Cleaner:
    """Each document once, however often it comes; 16 bytes of memory for each."""
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


def cleaners(spoken: Sequence[str]) -> list[Cleaner]:
    """Cleaners by name.

    Raises:
        DataError: none has that name.

    Example:
        >>> cleaners(["tidy"])
        Traceback (most recent call last):
        ...
        thinwire.errors.DataError: no cleaner is called 'tidy'; did you mean 'tidied'? There are: tidied, long_enough, unseen
    """
    for name in spoken:
        if name not in CLEANERS:
            raise DataError(
                f"no cleaner is called {name!r}{near(name, CLEANERS)} There are: "
                f"{', '.join(CLEANERS)}"
            )
    return [CLEANERS[name]() for name in spoken]


def cleaned(documents: Iterable[bytes], by: Sequence[Cleaner]) -> Iterator[bytes]:
    """What is left of the documents after all of the cleaners, one after the other.

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
