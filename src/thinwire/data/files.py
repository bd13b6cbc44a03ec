"""Documents from files and folders: UTF-8 text, or jsonl with one document to a line, either of them packed with gzip."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from thinwire.errors import DataError

FIELD = "text"  # of a line of jsonl
SUFFIXES = (".txt", ".md", ".jsonl")  # read from folders, with or without .gz after them


def folder_documents(folder: Path) -> Iterator[bytes]:
    """The documents of every text file below `folder`, sorted by path; hidden files and folders are left out.

    Raises:
        DataError: there is no such file, or one of them is not text.
    """
    found = sorted((path for path in _below(folder) if _suffix(path) in SUFFIXES), key=lambda path: path.relative_to(folder).parts)
    if not found:
        raise DataError(
            f"the folder {str(folder)!r} holds no text files: {', '.join(SUFFIXES)} count, and these packed as .gz; "
            "give such a folder, or one file of any name"
        )
    for path in found:
        yield from file_documents(path)


def file_documents(path: Path) -> Iterator[bytes]:
    """The file as one document, or each line of jsonl as one.

    Raises:
        DataError: the file cannot be read or unpacked, is binary, or a line of it has no text.
    """
    data = _text(path)
    if _suffix(path) == ".jsonl":
        yield from (_document(line, f"{path}:{number}") for number, line in enumerate(data.split(b"\n"), 1) if line.strip())
    else:
        yield data


def _below(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(f"the folder {error.filename!r} cannot be read: {error.strerror}") from error

    for above, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (path for name in names if not name.startswith(".") and (path := Path(above, name)).is_file())


def _suffix(path: Path) -> str:
    """The last suffix but for .gz, in small letters."""
    name = path.name.lower().removesuffix(".gz")
    return os.path.splitext(name)[1]


def _text(path: Path) -> bytes:
    """The bytes of a file, unpacked and known to be text."""
    packed = path.name.lower().endswith(".gz")
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if packed else data
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{str(path)!r} cannot be unpacked ({error}): it is no gzip file, or a damaged one; pack it again") from error
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    offset = data.find(b"\0")
    reason = "a NUL byte" if offset >= 0 else ""
    if not reason:
        try:
            data.decode()
        except UnicodeDecodeError as error:
            offset, reason = error.start, f"byte 0x{data[error.start]:02x}, which is not UTF-8 there"
    if reason:
        place = f"offset {offset}{' of what it unpacks to' if packed else ''}"
        raise DataError(f"{str(path)!r} is not text: {reason}, at {place}; give text in UTF-8 (iconv -t UTF-8 turns other text into it)")
    return data


def _document(line: bytes, place: str) -> bytes:
    """The text in one line of jsonl."""
    try:
        row = json.loads(line.decode())
    except ValueError as error:
        raise DataError(f"{place} is not JSON ({error}); a line of .jsonl is an object such as {{{FIELD!r}: '…'}}") from error
    if not isinstance(row, dict) or not isinstance(row.get(FIELD), str):
        has = f"it has: {', '.join(map(str, row)) or 'nothing'}" if isinstance(row, dict) else f"it is a {type(row).__name__}"
        raise DataError(f"{place} has no text in a field {FIELD!r} ({has}); give every line one")
    try:
        return str(row[FIELD]).encode()
    except UnicodeEncodeError as error:  # JSON may spell half of a surrogate pair, which no encoding can hold
        raise DataError(f"{place} holds half a character ({error.reason}); mend or drop the line") from error
