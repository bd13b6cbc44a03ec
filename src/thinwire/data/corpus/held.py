"""Hold out text that no run trains on: the end of every document, or with many documents every
twentieth.

A tail of each document keeps both parts of the same kind, so the held part measures the text and
not the choice of documents. With many documents their tails would be crumbs, too short to read a
window in; there whole documents are held out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

ONE_IN = 20  # one part in so many is held out
MANY = 100  # documents beyond which whole ones are held out


def held_out(documents: Sequence[bytes]) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """Split documents into `(train, held)`, without empty documents; either may be empty if the
    text is a few letters.

    Example:
        >>> held_out([b"To be, or not to be.\\n", b"That is the question.\\n"])
        ((b'To be, or not to be', b'That is the question'), (b'.\\n', b'.\\n'))
        >>> train, held = held_out([b"a letter"] * 200)
        >>> len(train), len(held)
        (190, 10)
    """
    pairs = list(parted(documents, len(documents) > MANY))
    return tuple(document for held, document in pairs if not held), tuple(
        document for held, document in pairs if held
    )


def parted(documents: Iterable[bytes], many: bool) -> Iterator[tuple[bool, bytes]]:
    """Yield the parts of documents, none of them empty, and whether each is held out; `many`: hold
    out whole documents."""
    for number, document in enumerate(documents, 1):
        parts = (
            ((number % ONE_IN == 0, document),)
            if many
            else zip((False, True), split(document), strict=True)
        )
        yield from (part for part in parts if part[1])


def split(document: bytes) -> tuple[bytes, bytes]:
    r"""Split one UTF-8 document into `(train, held)`: the last 1/20 is held, from the first
    paragraph that begins there.

    Without a paragraph there that leaves at least half of it, a line will do, or else a character;
    the two together are the document.

    Example:
        >>> split(b"A paragraph of the novel.\n\n" * 39 + b"The end.\n")
        (b'A paragraph...\n\n', b'A paragraph of the novel.\n\nThe end.\n')
        >>> split("naïve café".encode())[1].decode()
        'é'
    """
    start = len(document) * (ONE_IN - 1) // ONE_IN
    for end in (b"\n\n", b"\n\r\n", b"\n"):
        cut = document.find(end, start) + len(end)
        if cut > start and len(document) - cut >= max(1, (len(document) - start) // 2):
            return document[:cut], document[cut:]
    while (
        start and document[start] & 0xC0 == 0x80
    ):  # inside a character: bytes after its first are 10xxxxxx
        start -= 1
    return document[:start], document[start:]
