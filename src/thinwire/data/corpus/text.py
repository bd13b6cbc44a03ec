"""Read a text to train on, wherever it is: documents to train on, and documents held out for
validation.

    bundled                        six novels, fourteen plays and the sonnets, which come with the
                                   package
    novel.txt                      a file; one document
    letters.jsonl.gz               one document to a line, in its field "text"
    notes/                         every .txt, .md, .jsonl and .parquet below a folder, packed with
                                   gzip or zstd or not
    https://host/letters.jsonl.zst a file on an HTTP server; s3://bucket/notes/ a folder of an
        object store, by fsspec
    hf:roneneldan/TinyStories      a dataset of the Hugging Face hub

A small text is kept in memory. A larger one is read anew whenever it is gone through, a document at
a time.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path

from thinwire.data._specs import absent, path_from
from thinwire.data.cache import cache_folder, fetched_limit
from thinwire.data.corpus.clean import Cleaner, cleaned
from thinwire.data.corpus.english import works
from thinwire.data.corpus.files import documents as documents_of
from thinwire.data.corpus.files import file_documents, text_files
from thinwire.data.corpus.held import MANY, parted
from thinwire.data.corpus.hub import hub_documents
from thinwire.data.remote.disk import DiskCache
from thinwire.data.remote.stores import RemoteFile, Store, files_at, is_address, name_of, store_of
from thinwire.errors import DataError

MEMORY_BYTES = 1 << 28  # of text in memory
Read = Callable[[], Iterator[bytes]]


class Seen:
    """Count, bytes and digest of a list of documents; the digest includes lengths, so no two lists
    share one."""

    def __init__(self) -> None:
        self.count, self.size, self._digest = 0, 0, hashlib.sha256()

    def add(self, document: bytes) -> None:
        self.count, self.size = self.count + 1, self.size + len(document)
        self._digest.update(len(document).to_bytes(8, "little"))
        self._digest.update(document)

    @property
    def digest(self) -> bytes:
        return self._digest.digest()


class Documents(Collection[bytes]):
    """Documents that are read again each time; refused if they have changed since the first time.

    Args:
        label: what messages call them.
        read: begins to read them.
        seen: what they were.
    """

    def __init__(self, label: str, read: Read, seen: Seen) -> None:
        self._label, self._read, self.seen = label, read, seen

    def __len__(self) -> int:
        return self.seen.count

    def __iter__(self) -> Iterator[bytes]:
        seen = Seen()
        for document in self._read():
            seen.add(document)
            yield document
        if seen.digest != self.seen.digest:
            raise changed(self._label)

    def __contains__(self, document: object) -> bool:
        return any(each == document for each in self)


@dataclass(frozen=True)
class Text:
    """UTF-8 documents, none of them empty.

    Args:
        name: what the text was called by whoever asked for it.
        train: what to train on; may be gone through any number of times.
        held: what to measure with; nothing of it is in `train`.

    Example:
        >>> Text("a play", (b"To be, or ", b"not"), (b"to be",)).digest[:16]
        '627bc93107621751'
    """

    name: str
    train: Collection[bytes]
    held: Collection[bytes]

    @cached_property
    def digest(self) -> str:
        """Return sha256 in hexadecimal of both parts. Counts and lengths come before what they
        count, so no two texts share one."""
        digest = hashlib.sha256()
        for part in (self.train, self.held):
            seen = _seen(part)
            digest.update(seen.count.to_bytes(8, "little"))
            digest.update(seen.digest)
        return digest.hexdigest()

    def sizes(self) -> tuple[int, int]:
        """Return the bytes of both parts."""
        train, held = (
            part.seen.size if isinstance(part, Documents) else sum(map(len, part))
            for part in (self.train, self.held)
        )
        return train, held


def _seen(documents: Collection[bytes]) -> Seen:
    if isinstance(documents, Documents):
        return documents.seen
    seen = Seen()
    for document in documents:
        seen.add(document)
    return seen


def changed(label: str) -> DataError:
    """Return the error for a text that changed while it was read."""
    return DataError(
        f"the text {label!r} was changed while it was read; start again once it stays as it is"
    )


def read_text(
    source: str,
    cache: Path | None = None,
    clean: Callable[[], Sequence[Cleaner]] = tuple,
    hosts: Collection[str] = (),
) -> Text:
    """Return the text that `source` names, with about 1/20 of it held out.

    The held part is the end of every document, from a paragraph on; of more than 100 documents it
    is every 20th, and of a dataset that comes with a validation or test split it is that split.
    Empty documents are dropped.

    Args:
        source: `bundled`, the path of a file or folder,
            `hf:NAME[,config=C][,split=train][,field=text]`, or an address.
        cache: a folder that keeps what is fetched from an address, by default `cache_folder()`.
        clean: what is done to documents before some are held out, made anew for each time they are
            read (`unseen` remembers).
        hosts: names of hosts that an address may lead to, by redirects or lists of files, beside
            its own.

    Raises:
        DataError: there is no such text, it is empty, binary or too short to hold some of it out,
            or the hub cannot be reached.

    Example:
        >>> text = read_text("bundled")
        >>> len(text.train), text.train[0][:21].decode(), sum(map(len, text.held))
        (21, 'SENSE AND SENSIBILITY', 291441)
        >>> read_text("bundeld")
        Traceback (most recent call last):
        ...
        thinwire.errors.DataError: the text 'bundeld' cannot be read: ...; did you mean 'bundled'?
    """
    raw, raw_held = (
        hub_documents(source)
        if source.startswith("hf:")
        else (lambda: _plain(source, cache, hosts), None)
    )

    def read() -> Iterator[bytes]:
        return cleaned(raw(), clean())

    # A dataset's own held split is cleaned like the rest.
    held = raw_held and (lambda: cleaned(raw_held(), clean()))
    # A large text is read again each time; a small one stays in memory.
    small = _within(read, MEMORY_BYTES)
    if small is None:
        return _large(source, _pairs(read, held))
    if not small:
        raise DataError(
            f"the text {source!r} is empty: there is nothing to train on; give one with words in it"
        )
    # Split, and refuse a text that leaves one of the parts empty.
    pairs = list(_pairs(small.__iter__, held)())
    train, held_texts = (
        tuple(document for is_held, document in pairs if is_held == part) for part in (False, True)
    )
    if not train or not held_texts:
        raise DataError(
            f"the text {source!r} is too short to hold some of it out: it has "
            f"{sum(map(len, small))} bytes in "
            f"{len(small)} document{'s' if len(small) > 1 else ''}; give a few paragraphs at least"
        )
    return Text(source, train, held_texts)


def _within(read: Read, most: int) -> list[bytes] | None:
    """Return the documents; `None` if they have more than `most` bytes."""
    in_memory, size = [], 0
    for document in read():
        in_memory.append(document)
        size += len(document)
        if size > most:
            return None
    return in_memory


def _pairs(read: Read, held: Read | None) -> Callable[[], Iterator[tuple[bool, bytes]]]:
    """Return a function that yields the documents, each with whether it is held out."""
    if held is not None and any(held()):
        return lambda: (
            (to_hold, document)
            for to_hold, of in ((False, read), (True, held))
            for document in of()
        )
    many = sum(1 for _ in islice(read(), MANY + 1)) > MANY
    return lambda: parted(read(), many)


def _large(source: str, pairs: Callable[[], Iterator[tuple[bool, bytes]]]) -> Text:
    seen = (Seen(), Seen())
    for to_hold, document in pairs():
        seen[to_hold].add(document)

    def part(held: bool) -> Documents:
        return Documents(
            source,
            lambda: (document for to_hold, document in pairs() if to_hold == held),
            seen[held],
        )

    return Text(source, part(False), part(True))


def readers_of(source: str, cache: Path | None = None, hosts: Collection[str] = ()) -> list[Read]:
    """Return a reader of documents for each file of a text: a file or folder here, or a URL.

    Raises:
        DataError: there is no such text.
    """
    # Addresses are listed here and read through the disk cache.
    if is_address(source):
        store, disk = (
            store_of(source, hosts),
            DiskCache((cache or cache_folder()).expanduser() / "fetched", fetched_limit()),
        )
        return [partial(_fetched, url, store, disk) for url in files_at(source, store, hosts)]
    if not source.strip():
        raise DataError(
            "the text '' names nothing; say bundled, the path of a file or folder, or hf:NAME"
        )
    path = path_from(source, "text")
    if path.is_dir() or path.is_file():
        return [partial(file_documents, file) for file in text_files(path)]
    if path.exists():
        raise DataError(
            f"the text {source!r} is neither a file nor a folder; copy it into a file and give that"
        )
    raise DataError(f"the text {source!r} cannot be read: {absent(path, ['bundled'])}")


def _fetched(url: str, store: Store, disk: DiskCache) -> Iterator[bytes]:
    return documents_of(
        url, name_of(url), lambda: io.BufferedReader(RemoteFile(url, store, disk), 1 << 20)
    )


def _plain(source: str, cache: Path | None, hosts: Collection[str]) -> Iterator[bytes]:
    """Yield the documents of files, here or elsewhere."""
    return (
        iter(works())
        if source == "bundled"
        else chain.from_iterable(read() for read in readers_of(source, cache, hosts))
    )
