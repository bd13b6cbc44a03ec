"""Read the documents of a package's file as blocks: one reader for each kind of file that
`sources.py` names.

A page is one document. Dictionaries are cut by the alphabet and the Bible by its books, so that no
document is a whole source.
"""

from __future__ import annotations

import gzip
import json
import re
import struct
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

from thinwire.data.corpus.prose import Block, Kind

Document = Sequence[Block]
Reader = Callable[[bytes], Iterable[Document]]

ENTRIES = 400  # of a dictionary to a document: some 60 kB

# Words of printers and editors, not of the author.
EDITORIAL = re.compile(
    (
        r"\[End volume one of this edition\..*?\]|\[At this point in the first and second "
        r"editions, Volume .*?\]|^A NOTE ON THE TEXT$[\s\S]*"
    ),
    re.M,
)


def page(blocks: Callable[[bytes], Iterable[Block]]) -> Reader:
    """Make a reader of files that are one document each."""
    return lambda data: [list(blocks(data))]


def verse(data: bytes) -> list[Document]:
    r"""Read a work of literature with its lines as they are, without line numbers and the dots that
    mark indentation.

    Example:
        >>> page = b"HENCE, loathed Melancholy,\r\n......Of Cerberus born     300\r\n\r\n\r\n\r\nIn"
        >>> [[block]] = verse(page)
        >>> block.text
        'HENCE, loathed Melancholy,\n  Of Cerberus born\n\nIn'
    """
    lines = (
        re.sub(r"\s{4,}\d+$", "", line.rstrip()) for line in data.decode("utf-8-sig").splitlines()
    )
    work = "\n".join(re.sub(r"^\.{3,}", "  ", line) for line in lines)
    return [[Block(re.sub(r"\n{3,}", "\n\n", work).strip(), Kind.WORK)]]


def novels(data: bytes) -> Iterator[Document]:
    """Read the novels of an R lazy-load data base; each is a vector of its lines."""
    for lines in r_vectors(data):
        yield [
            Block(" ".join(paragraph.split()), Kind.WORK)
            for paragraph in _paragraphs(EDITORIAL.sub("", "\n".join(lines)))
        ]


def r_vectors(data: bytes) -> Iterator[list[str]]:
    """Yield the character vectors of an R lazy-load data base. A chunk is its unpacked length in 4
    bytes, and a zlib stream."""
    while data:
        unpacker = zlib.decompressobj()
        yield list(_r_strings(unpacker.decompress(data[4:])))
        data = unpacker.unused_data


def _r_strings(stream: bytes) -> Iterator[str]:
    """Return the elements of an R character vector, serialised as XDR (big-endian), format 3."""
    if not stream.startswith(b"X\n\0\0\0\3"):
        raise ValueError("not an R object in XDR, format 3")
    # 1. The header: format, versions and the name of the encoding.
    (encoding_size,) = struct.unpack_from(">I", stream, 14)  # before it: "X\n" and three versions
    # 2. The vector's type and length. 3. Its elements: flags, length, bytes.
    at = 18 + encoding_size
    kind, count = struct.unpack_from(">II", stream, at)
    if kind & 0xFF != 16:
        raise ValueError(f"an R object of type {kind & 0xFF}, not a character vector (16)")
    at += 8
    for _ in range(count):
        _, size = struct.unpack_from(">II", stream, at)
        at += 8
        yield stream[at : at + size].decode()
        at += size


def bible(data: bytes) -> Iterator[Document]:
    r"""Read the books from JSON with one verse per line, a paragraph for each chapter.

    Example:
        >>> place = {"book": "Ruth", "chapter": 1}
        >>> rows = [json.dumps(place | {"text": text}) for text in ("Now it", "came to pass")]
        >>> [[block.text for block in book] for book in bible("\n".join(rows).encode())]
        [['Ruth 1', 'Now it came to pass']]
    """
    verses = [json.loads(line) for line in data.splitlines()]
    for _, book in groupby(verses, lambda verse: verse["book"]):
        blocks = []
        for (name, number), chapter in groupby(
            book, lambda verse: (verse["book"], verse["chapter"])
        ):
            blocks += [
                Block(f"{name} {number}", Kind.WORK),
                Block(" ".join(verse["text"] for verse in chapter), Kind.WORK),
            ]
        yield blocks


def wordnet(data: bytes) -> Iterator[Document]:
    """Read words and their meanings from a file of synsets; a document holds neighbours of one
    field, such as animals.

    Example:
        >>> row = b'00002684 03 n 02 object 0 thing 0 001 @ 00001930 n 0000 | one seen; "an object"'
        >>> list(wordnet(row))
        [[Block(text='object, thing: one seen; "an object".', ...)]]
    """
    # 1. One entry a line: field, words (their count is in hexadecimal) and gloss.
    entries = []
    for line in data.decode().splitlines():
        term, bar, gloss = line.partition(" | ")
        if not bar:  # the licence at the top
            continue
        fields = term.split()
        count = int(fields[3], 16)
        words = (
            re.sub(r"\(\w+\)$", "", word).replace("_", " ")
            for word in fields[4 : 4 + 2 * count : 2]
        )
        entries.append((fields[1], f"{', '.join(words)}: {gloss.strip().rstrip('.')}."))
    # 2. Neighbours of one field make a document.
    for _, field in groupby(entries, lambda entry: entry[0]):
        yield from _chunks(Block(text, Kind.WORK) for _, text in field)


def jargon(data: bytes) -> Iterator[Document]:
    r"""Read the Jargon File: essays, and entries whose word starts their first paragraph.

    Example:
        >>> page = b"   :broken arrow: n.\n\n   [IBM] The error code\n   on {line 25}.\n"
        >>> list(jargon(gzip.compress(page)))
        [[Block(text='Broken arrow: [IBM] The error code on line 25.', ...)]]
    """
    text = gzip.decompress(data).decode()
    for letter in re.split(r"^ {1,3}[A-Z]$", text, flags=re.MULTILINE):
        blocks, word = [], ""
        for paragraph in _paragraphs(letter):
            if entry := re.match(r" *:([^:\n]+):", paragraph):
                word = f"{entry[1][0].upper()}{entry[1][1:]}: "
            else:
                blocks.append(Block(word + " ".join(re.sub(r"[{}]", "", paragraph).split())))
                word = ""
        yield blocks


# What may stand between a word of the dictionary and its meaning: sounds, parts of speech, forms
# and origin.
GRAMMAR = re.compile(
    r"(?:\s+|[,;&.]|(?:or|and|also)\b|\\[^\\]*\\|\([^()]*\)|\{[^{}]*\}|\[(?:[^\[\]]|\[[^\[\]]*\])*\]"
    r"|(?:n|a|v|t|i|p|adj|adv|prop|prep|conj|interj|pron|pl|sing|imp|pr|ppr|vb|fem|masc|compar|superl|obs)\.)*"
)
COPIED = re.compile(r"\[WordNet ")  # a source of its own
EDITION = re.compile(
    r"\[(?:[^\]]*(?:Webster|Suppl\.|Century)[^\]]*|[A-Z]{2,4})\].*"
)  # what follows it is the next entry's word
USAGE = re.compile(
    r"\s*\[(?:R|Obs|Obsoles|Archaic|Poetic|Colloq|Slang|Rare|Eng|U\. ?S|Scot|Prov)\.?[^\]]{0,30}\]"
)
ACCENTS = {
    "'": "\u0301",
    "`": "\u0300",
    '"': "\u0308",
    "^": "\u0302",
    "~": "\u0303",
    ",": "\u0327",
    "=": "\u0304",
    ".": "\u0307",
    "-": "\u0304",
}


def webster(data: bytes) -> Iterator[Document]:
    r"""Read the GNU Collaborative International Dictionary of English: a word, then its meanings.

    Example:
        >>> head = 'Abature \\Ab"a*ture\\ ([.a]b"[.a]*t[-u]r; 135), n. [F.]\n'
        >>> meaning = '   Grass beaten down by a stag. --Crabb.\n   [1913 Webster]\n'
        >>> list(webster(gzip.compress((head + meaning).encode())))
        [[Block(text='Abature: Grass beaten down by a stag. --Crabb.', ...)]]
    """
    entries = re.split(r"\n(?=\S)", gzip.decompress(data).decode("utf-8", "replace"))
    yield from _chunks(block for entry in entries if (block := _entry(entry)))


def _entry(entry: str) -> Block | None:
    # The headword ends at its pronunciation, which stands in backslashes.
    word, slash, rest = entry.partition(" \\")
    if not slash or "\n" in word:
        return None
    # A sense a paragraph, without its number and the marks of usage and edition; accents come back
    # as letters.
    senses = []
    for paragraph in _paragraphs(GRAMMAR.sub("", "\\" + rest, count=1)):
        if COPIED.search(paragraph):
            continue
        text = re.sub(r"^\s*\d+\.\s+", "", USAGE.sub("", EDITION.sub("", paragraph)))
        text = re.sub(
            r"\[([^\w\s])(\w)\]|\[(\w)([^\w\s])\]", _accented, re.sub(r"\[([ao]e)\]", r"\1", text)
        )
        senses.append(" ".join(re.sub(r"[{}]", "", text).split()))
    meaning = " ".join(filter(None, senses))
    return Block(f"{word}: {meaning}") if meaning else None


def _accented(match: re.Match[str]) -> str:
    mark, letter = (match[1], match[2]) if match[1] else (match[4], match[3])
    return unicodedata.normalize("NFC", letter + ACCENTS.get(mark, ""))


def _paragraphs(text: str) -> Iterator[str]:
    return (paragraph for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip())


def _chunks(blocks: Iterable[Block]) -> Iterator[Document]:
    """Group dictionary entries into documents."""
    chunk: list[Block] = []
    for block in blocks:
        chunk.append(block)
        if len(chunk) == ENTRIES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
