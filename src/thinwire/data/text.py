"""A text to learn from, wherever it lies: documents to train on, and documents held out to measure with.

    bundled                        six novels, fourteen plays and the sonnets, which come with the package
    novel.txt                      a file; one document
    letters.jsonl.gz               one document to a line, in its field "text"
    notes/                         every .txt, .md, .jsonl and .parquet below a folder, packed with gzip or zstd or not
    https://host/letters.jsonl.zst a file on an HTTP server; s3://bucket/notes/ a folder of an object store, by fsspec
    hf:roneneldan/TinyStories      a dataset of the Hugging Face hub

All of it is read into memory.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from thinwire.data._asked import absent, path_from
from thinwire.data.cache import cache_folder, fetched_limit
from thinwire.data.disk import DiskCache
from thinwire.data.english import works
from thinwire.data.files import documents as documents_of
from thinwire.data.files import file_documents, folder_documents
from thinwire.data.held import held_out
from thinwire.data.hub import hub_documents
from thinwire.data.remote import RemoteFile, files_at, is_address, name_of, store_of
from thinwire.errors import DataError


@dataclass(frozen=True)
class Text:
    """Documents of UTF-8, none of them empty.

    Args:
        name: what the text was called by whoever asked for it.
        train: what to train on.
        held: what to measure with; nothing of it is in `train`.

    Example:
        >>> Text("a play", (b"To be, or ", b"not"), (b"to be",)).digest[:16]
        'c500a9f2d0468f6a'
    """

    name: str
    train: tuple[bytes, ...]
    held: tuple[bytes, ...]

    @cached_property
    def digest(self) -> str:
        """sha256 in hexadecimal of both parts; every count and length goes before what it counts, so no two texts share one."""
        digest = hashlib.sha256()
        for part in (self.train, self.held):
            digest.update(len(part).to_bytes(8, "little"))
            for document in part:
                digest.update(len(document).to_bytes(8, "little"))
                digest.update(document)
        return digest.hexdigest()


def read_text(source: str, cache: Path | None = None) -> Text:
    """The text that `source` names, with about 1/20 of it held out.

    The held part is the end of every document, from a paragraph on; of more than 100 documents it is every 20th, and of a dataset
    that comes with a validation or test split it is that split. Empty documents are dropped.

    Args:
        source: `bundled`, the path of a file or folder, `hf:NAME[,config=C][,split=train][,field=text]`, or an address.
        cache: a folder that keeps what is fetched from an address, by default `cache_folder()`.

    Raises:
        DataError: there is no such text, it is empty, binary or too short to hold some of it out, or the hub cannot be reached.

    Example:
        >>> text = read_text("bundled")
        >>> len(text.train), text.train[0][:21].decode(), sum(map(len, text.held))
        (21, 'SENSE AND SENSIBILITY', 291441)
        >>> read_text("bundeld")
        Traceback (most recent call last):
        ...
        thinwire.errors.DataError: the text 'bundeld' cannot be read: there is no such file ...; did you mean 'bundled'?
    """
    documents, held = hub_documents(source) if source.startswith("hf:") else (_plain(source, cache), None)
    documents = [document for document in documents if document]
    if not documents:
        raise DataError(f"the text {source!r} is empty: there is nothing to train on; give one with words in it")
    if held is None or not any(held):
        train, apart = held_out(documents)
    else:
        train, apart = tuple(documents), tuple(filter(None, held))
    if not train or not apart:
        raise DataError(
            f"the text {source!r} is too short to hold some of it out: it has {sum(map(len, documents))} bytes in "
            f"{len(documents)} document{'s' if len(documents) > 1 else ''}; give a few paragraphs at least"
        )
    return Text(source, train, apart)


def _plain(source: str, cache: Path | None) -> list[bytes]:
    """The documents of what lies in files, here or elsewhere."""
    return list(_elsewhere(source, cache)) if is_address(source) else _local(source)


def _elsewhere(source: str, cache: Path | None) -> Iterator[bytes]:
    store, kept = store_of(source), DiskCache((cache or cache_folder()).expanduser() / "fetched", fetched_limit())
    for url in files_at(source, store):
        yield from documents_of(url, name_of(url), lambda url=url: io.BufferedReader(RemoteFile(url, store, kept), 1 << 20))  # type: ignore[misc]


def _local(source: str) -> list[bytes]:
    """The documents of what lies on this machine."""
    if source == "bundled":
        return list(works())
    if not source.strip():
        raise DataError("the text '' names nothing; say bundled, the path of a file or folder, or hf:NAME")
    path = path_from(source, "text")
    if path.is_dir():
        return list(folder_documents(path))
    if path.is_file():
        return list(file_documents(path))
    if path.exists():
        raise DataError(f"the text {source!r} is neither a file nor a folder; copy it into a file and give that")
    raise DataError(f"the text {source!r} cannot be read: {absent(path, ['bundled'])}")
