"""Read documents from files and folders: UTF-8 text, jsonl (one document per line) and parquet (one
per row). Text and jsonl may be compressed.

One document is in memory at a time: of a text file all of it, of jsonl a line, of parquet some
hundreds of rows.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

from thinwire.data._specs import extra
from thinwire.errors import DataError
from thinwire.text.words import error_text, near

FIELD = "text"  # of a line of jsonl, or a column of parquet
PARQUET = ".parquet"
SUFFIXES = (
    ".txt",
    ".md",
    ".jsonl",
    PARQUET,
)  # read from folders; all but parquet with or without a packing after them
PACKED = (".gz", ".zst")
CHUNK = 1 << 20  # bytes read at once
ROWS = 256  # of parquet
Opener = Callable[[], IO[bytes]]


def text_files(path: Path) -> list[Path]:
    """List the text files below a folder, sorted by path, or the file alone.

    Raises:
        DataError: there is none.
    """
    if not path.is_dir():
        return [path]
    files = sorted(
        (each for each in _below(path) if _suffix(each.name) in SUFFIXES),
        key=lambda each: each.relative_to(path).parts,
    )
    if not files:
        raise DataError(
            f"the folder {str(path)!r} holds no text files: {', '.join(SUFFIXES)} count, and "
            f"these packed as {' or '.join(PACKED)}; "
            "give such a folder, or one file of any name"
        )
    return files


def is_text_file(name: str) -> bool:
    """Return whether a file of that name is read from a folder.

    Example:
        >>> is_text_file("a/letters.jsonl.zst"), is_text_file("a/picture.png")
        (True, False)
        >>> is_text_file("a/.hidden/b.txt")
        False
    """
    return _suffix(name) in SUFFIXES and not any(part.startswith(".") for part in name.split("/"))


def file_documents(path: Path) -> Iterator[bytes]:
    """Yield the file as one document, or each line of jsonl or row of parquet as one.

    Raises:
        DataError: the file cannot be read or unpacked, is binary, or a line of it has no text.
    """
    yield from documents(str(path), path.name, lambda: path.open("rb"))


def documents(label: str, name: str, opened: Opener) -> Iterator[bytes]:
    """Yield the documents of a file that `opened` opens, wherever it is.

    Args:
        label: what messages call it.
        name: its name, whose suffixes say what it is.
        opened: opens it; parquet must be seekable.
    """
    # jsonl is read line by line; a text file is one document and must be in memory whole.
    suffix = _suffix(name)
    with _explained(label):
        if suffix == PARQUET:
            yield from _rows(label, opened)
            return
        blocks = _unpacked(label, name, opened)
        if suffix == ".jsonl":
            for number, offset, line in _lines(blocks):
                _must_be_text(line, offset, label, name)
                if line.strip():
                    yield _document(line, f"{label}:{number}")
        else:
            data = b"".join(blocks)
            _must_be_text(data, 0, label, name)
            yield data


def _below(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(
            f"the folder {error.filename!r} cannot be read: {error.strerror}"
        ) from error

    for above, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (
            path
            for name in names
            if not name.startswith(".") and (path := Path(above, name)).is_file()
        )


def _packing(name: str) -> str:
    return next((packed for packed in PACKED if name.lower().endswith(packed)), "")


def _suffix(name: str) -> str:
    """Return the last suffix in lower case, without that of a compression."""
    suffix = os.path.splitext(name.lower().removesuffix(packed := _packing(name)))[1]
    return "" if packed and suffix == PARQUET else suffix


@contextmanager
def _explained(label: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{label!r} cannot be unpacked ({error}): it is no gzip file, or a damaged one; "
            "pack it again"
        ) from error
    except OSError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{label!r} cannot be read: {error.strerror or error_text(error)}"
        ) from error


def _unpacked(label: str, name: str, opened: Opener) -> Iterator[bytes]:
    """Yield the bytes of a file in blocks, decompressed."""
    packing = _packing(name)
    with closing(opened()) as file:
        if packing == ".zst":
            yield from _zstandard(label, file)
            return
        source: IO[bytes] = gzip.GzipFile(fileobj=file) if packing else file  # type: ignore[assignment]
        while block := source.read(CHUNK):
            yield block


def _zstandard(label: str, file: IO[bytes]) -> Iterator[bytes]:
    """Decompress a zstd file, and refuse one that was cut off, which `stream_reader` would
    accept."""
    with extra(f"{label!r}, which is packed with zstd,", "entropy"):
        import zstandard
    # A file may be several frames in a row: what one frame leaves belongs to the next.
    frame = None
    try:
        while packed := file.read(CHUNK):
            while packed:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                if block := frame.decompress(packed):
                    yield block
                packed = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        raise DataError(
            f"{label!r} cannot be unpacked ({error}): it is no zstd file, or a damaged one; "
            "pack it again"
        ) from error
    if frame is not None:
        raise DataError(
            f"{label!r} cannot be unpacked (it ends within a frame): it was cut off; fetch or "
            "pack it again"
        )


def _lines(blocks: Iterator[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """Yield number (from 1), offset and bytes of every line."""
    number, offset, chunks = 1, 0, list[bytes]()
    for block in blocks:
        *whole, rest = block.split(b"\n")
        for line in whole:
            joined = b"".join([*chunks, line])
            chunks = []
            yield number, offset, joined
            number, offset = number + 1, offset + len(joined) + 1
        if rest:
            chunks.append(rest)
    if chunks:
        yield number, offset, b"".join(chunks)


def _must_be_text(data: bytes, begin: int, label: str, name: str) -> None:
    # NUL is valid UTF-8, but no text has it: such a file is binary.
    offset = data.find(b"\0")
    reason = "a NUL byte" if offset >= 0 else ""
    if not reason:
        try:
            data.decode()
        except UnicodeDecodeError as error:
            offset, reason = (
                error.start,
                f"byte 0x{data[error.start]:02x}, which is not UTF-8 there",
            )
    if reason:
        where = f"offset {begin + offset}{' of what it unpacks to' if _packing(name) else ''}"
        raise DataError(
            f"{label!r} is not text: {reason}, at {where}; give text in UTF-8 (iconv -t UTF-8 "
            "turns other text into it)"
        )


def _rows(label: str, opened: Opener) -> Iterator[bytes]:
    """Yield the texts of a parquet file; a row without text is skipped."""
    with extra(f"{label!r}, which is parquet,", "hub"):
        import pyarrow  # type: ignore[import-untyped, unused-ignore]
        import pyarrow.parquet  # type: ignore[import-untyped, unused-ignore]
    with closing(opened()) as file:
        try:
            table = pyarrow.parquet.ParquetFile(file)
            names = list(table.schema_arrow.names)
            if FIELD not in names:
                raise DataError(
                    f"{label!r} has no column {FIELD!r}{near(FIELD, names)} It has: "
                    f"{', '.join(names) or 'none'}; name one so"
                )
            for batch in table.iter_batches(ROWS, columns=[FIELD]):
                yield from _texts(batch.column(0).to_pylist(), label)
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise DataError(
                f"{label!r} cannot be read as parquet ({error_text(error)}): it is another kind of "
                "file, or a damaged one"
            ) from error


def _texts(rows: list[Any], label: str) -> Iterator[bytes]:
    for row in rows:
        if not isinstance(row, str | None):
            raise DataError(
                f"the column {FIELD!r} of {label!r} holds {type(row).__name__}, not text"
            )
        if row:
            yield row.encode()


def _document(line: bytes, where: str) -> bytes:
    """Return the text of one line of jsonl."""
    try:
        row = json.loads(line.decode())
    except ValueError as error:
        raise DataError(
            f"{where} is not JSON ({error}); a line of .jsonl is an object such as {{{FIELD!r}: "
            f"'…'}}"
        ) from error
    if not isinstance(row, dict) or not isinstance(row.get(FIELD), str):
        has = (
            f"it has: {', '.join(map(str, row)) or 'nothing'}"
            if isinstance(row, dict)
            else f"it is a {type(row).__name__}"
        )
        raise DataError(f"{where} has no text in a field {FIELD!r} ({has}); give every line one")
    try:
        return str(row[FIELD]).encode()
    # JSON may spell half of a surrogate pair, which no encoding can hold.
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} holds half a character ({error.reason}); mend or drop the line"
        ) from error
