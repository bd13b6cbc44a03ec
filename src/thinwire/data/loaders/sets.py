"""Pack a text into small shards of ids with an index, read from a folder, a server or an object
store.

    <set>/index.json                      counts, digests, and the size and sha256 of every other
                                          file
          train-00000.bin, …              ids, two bytes each where the vocabulary allows, half a
                                          megabyte to a shard
          held-00000.bin, …
          tokenizer/                      as `save_pretrained` writes it

A rank fetches the shards that it reads and no others, ahead of their use, and checks each against
the index; what was fetched stays on the disk (`DiskCache`), so later epochs and runs need no line.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from thinwire.data.cache import DISK_FULL, refused
from thinwire.data.claims import claimed, partial, renewed
from thinwire.data.corpus.text import Text
from thinwire.data.corpus.tokenizer import encode, tokenizer_from
from thinwire.data.loaders.mapped import in_shards
from thinwire.data.remote.disk import DiskCache
from thinwire.data.remote.http import About
from thinwire.data.remote.peers import Peers
from thinwire.data.remote.stores import Store, is_address, joined, store_of
from thinwire.errors import DataError
from thinwire.text.words import error_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

INDEX, FORMAT = "index.json", 1
SHARD_BYTES = 1 << 19
Data = TypeVar("Data", bytes, memoryview)


@dataclass(frozen=True)
class Shard:
    """A file of a set: its name, its number of tokens, and its checksum."""

    file: str
    tokens: int
    sha256: str


@dataclass(frozen=True)
class TokenSet:
    """A packed text, wherever it is.

    Args:
        location: a folder or an address; ends with a `/`.
        dtype: of the ids, little-endian.
        train: the shards to train on.
        held: those held out.
        train_bytes: of text that `train` stands for.
        held_bytes: the same of `held`.
        digest: sha256 in hexadecimal of the ids of both parts, the same as of the unpacked text.
        files: the tokenizer's, by name: size and checksum.
    """

    location: str
    dtype: str
    train: tuple[Shard, ...]
    held: tuple[Shard, ...]
    train_bytes: int
    held_bytes: int
    digest: str
    files: dict[str, tuple[int, str]]

    @property
    def train_tokens(self) -> int:
        return sum(shard.tokens for shard in self.train)


def write_set(
    folder: Path, text: Text, tokenizer: PreTrainedTokenizerFast, shard_bytes: int = SHARD_BYTES
) -> TokenSet:
    """Pack a text into a folder, which appears complete or not at all.

    Args:
        folder: new.
        text: what to pack.
        tokenizer: what its ids are of; it is saved with them.
        shard_bytes: of ids in a shard.

    Raises:
        DataError: the folder is there, or cannot be written; a text without a part to train on, or
            to hold out.
    """
    if not text.train or not text.held:
        raise DataError(
            f"the text {text.name!r} has nothing to {'hold out' if text.train else 'train on'}: a "
            "set holds both; give it some"
        )
    try:
        # Build beside the place, and rename: the folder appears whole or not at all.
        folder.parent.mkdir(parents=True, exist_ok=True)
        with claimed(folder):
            if folder.exists():
                raise DataError(f"{str(folder)!r} is there already: pack into a new folder")
            ours = partial(folder)
            try:
                ours.mkdir()
                with renewed(ours):
                    index = _pack(ours, text, tokenizer, shard_bytes)
                os.replace(ours, folder)
            finally:
                # A full disk gets its room back.
                shutil.rmtree(ours, ignore_errors=True)
    except Exception as error:
        if isinstance(error, DataError) or not (number := refused(error)):
            raise
        do = "make room there" if number in DISK_FULL else "see that you may write there"
        raise DataError(
            f"packing into {str(folder)!r} stopped ({os.strerror(number)}): {do}, or give another "
            "folder"
        ) from error
    return read_index(f"{folder}/", index)


def _pack(folder: Path, text: Text, tokenizer: PreTrainedTokenizerFast, shard_bytes: int) -> bytes:
    """Write all files, the index last, and return the index."""
    # Two bytes an id where the vocabulary allows.
    dtype = "<u2" if len(tokenizer) <= 1 << 16 else "<i4"
    index: dict[str, Any] = {"thinwire set": FORMAT, "text": text.name, "dtype": dtype}
    digests = ""
    for part, size in zip(("train", "held"), text.sizes(), strict=True):
        whole, rows = hashlib.sha256(), []
        shards = in_shards(
            encode(tokenizer, getattr(text, part)), shard_bytes // np.dtype(dtype).itemsize
        )
        # 1. Shards of each part, and a digest of all ids of it.
        for number, ids in enumerate(shards):
            rows.append(
                _write(folder / f"{part}-{number:05}.bin", np.concatenate(list(ids)), dtype, whole)
            )
        index[part] = {"bytes": size, "shards": rows}
        digests += whole.hexdigest()
    # 2. The tokenizer's files, which the index lists with size and hash.
    tokenizer.save_pretrained(folder / "tokenizer")
    saved = sorted(path for path in (folder / "tokenizer").rglob("*") if path.is_file())
    index["tokenizer"] = [
        [path.relative_to(folder).as_posix(), path.stat().st_size, _sha256(path.read_bytes())]
        for path in saved
    ]
    # 3. The index last: a folder without one is no set.
    index["digest"] = hashlib.sha256(digests.encode()).hexdigest()
    data = json.dumps(index, indent=0).encode()
    (folder / INDEX).write_bytes(data)
    return data


def _write(path: Path, ids: NDArray[np.int32], dtype: str, whole: Any) -> list[Any]:
    whole.update(np.ascontiguousarray(ids, dtype="<i4").data)
    data = ids.astype(dtype).tobytes()
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return [path.name, len(ids), _sha256(data)]


def read_index(location: str, data: bytes) -> TokenSet:
    """Read the index of a set.

    Raises:
        DataError: it is none, or of another version.
    """
    # 1. The version before the content.
    try:
        index = json.loads(data)
        if index["thinwire set"] != FORMAT:
            raise DataError(
                f"the set {location!r} has format {index['thinwire set']!r}, and this version "
                "reads "
                f"{FORMAT}: pack it again"
            )
        # 2. Names must stay inside the set: an index may come from a stranger's server.
        parts = {
            part: tuple(
                Shard(str(file), int(tokens), str(sha))
                for file, tokens, sha in index[part]["shards"]
            )
            for part in ("train", "held")
        }
        shards = [shard for part in parts.values() for shard in part]
        if index["dtype"] not in ("<u2", "<i4") or any("/" in shard.file for shard in shards):
            raise ValueError("a type or a name that no set has")
        if not all(parts.values()) or min(shard.tokens for shard in shards) < 1:
            raise ValueError("an empty shard, or none to train on or to hold out")
        files = {str(name): (int(size), str(sha)) for name, size, sha in index["tokenizer"]}
        if wrong := [
            name
            for name in files
            if PurePosixPath(name).parts[:1] != ("tokenizer",) or ".." in PurePosixPath(name).parts
        ]:
            raise ValueError(f"{wrong[0]!r} is no file of a tokenizer")
        sizes = (int(index["train"]["bytes"]), int(index["held"]["bytes"]))
        return TokenSet(
            location,
            index["dtype"],
            parts["train"],
            parts["held"],
            *sizes,
            str(index["digest"]),
            files,
        )
    except DataError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{location}{INDEX} is no index of a set ({error_text(error)}), or a damaged one: "
            "pack it again"
        ) from error


class SetReader:
    """Fetch the files of a set on demand, and check them against its index.

    Args:
        location: the set's folder or address.
        cache: a folder that keeps what is fetched; nothing is where the set lies in a folder.
        limit_bytes: of what it keeps.
        peers: other hosts that fetch their part of it, too.
        hosts: names of hosts that the set's own may lead to.

    Raises:
        DataError: there is no set, or it cannot be read.
    """

    def __init__(
        self,
        location: str,
        cache: Path,
        limit_bytes: int,
        peers: Peers | None = None,
        hosts: Collection[str] = (),
    ) -> None:
        self.location = location if location.endswith("/") else location + "/"
        self._store: Store | None = (
            store_of(self.location, hosts) if is_address(self.location) else None
        )
        self._cache, self._peers = DiskCache(cache, limit_bytes), peers
        self.fetched_bytes = 0
        """From the set's own place; what came from peers does not count."""
        self._named: dict[str, tuple[str, int]] | None = None
        self.set = read_index(self.location, self._index())

    def ids(self, shard: Shard) -> NDArray[Any]:
        """Return the ids of a shard: (tokens,), read-only.

        Raises:
            DataError: it cannot be had, or is not what the index says.
        """
        size = shard.tokens * np.dtype(self.set.dtype).itemsize
        return np.frombuffer(self.file(shard.file, size, shard.sha256), dtype=self.set.dtype)

    def held(self) -> NDArray[np.int32]:
        """Return all held-out ids: (tokens,) int32."""
        return np.concatenate([self.ids(shard).astype(np.int32) for shard in self.set.held])

    def tokenizer(self, specials: Sequence[str]) -> PreTrainedTokenizerFast:
        """Return the tokenizer of the ids.

        Raises:
            DataError: it lacks a special token that is needed.
        """
        with tempfile.TemporaryDirectory(prefix="thinwire-") as folder:
            for name, (size, sha256) in self.set.files.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.file(name, size, sha256))
            return tokenizer_from(
                str(Path(folder, "tokenizer")), Text(self.location, (), ()), specials
            )

    def file(self, name: str, size: int, sha256: str) -> memoryview:
        """Return the bytes of a file; fetch and check it if it is not in the cache."""
        if self._store is None:
            return memoryview(self._checked(name, size, sha256, _mapped(Path(self.location, name))))
        return self._cache.get(sha256, lambda: self._fetched(name, size, sha256))

    def by_checksum(self, sha256: str) -> memoryview:
        """Return a file of the set by its checksum, for another rank.

        Raises:
            LookupError: the set has none with that checksum; or another host fetches it into this
                very cache, and that may be who asks.
            DataError: it cannot be had.
        """
        if self._named is None:
            dtype, shards = np.dtype(self.set.dtype), self.set.train + self.set.held
            self._named = {
                shard.sha256: (shard.file, shard.tokens * dtype.itemsize) for shard in shards
            }
            self._named |= {digest: (name, size) for name, (size, digest) in self.set.files.items()}
        name, size = self._named[sha256]
        if self._store is not None and self._cache.fetched_elsewhere(sha256):
            raise LookupError(f"{name} is being fetched into the cache that this host shares")
        return self.file(name, size, sha256)

    def _fetched(self, name: str, size: int, sha256: str) -> bytes:
        def from_afar() -> bytes:
            assert self._store is not None
            data = self._store.read(joined(self.location, name), 0, size, About(size, ""))
            self.fetched_bytes += len(data)
            return data

        data = from_afar() if self._peers is None else self._peers.fetch(sha256, size, from_afar)
        return self._checked(name, size, sha256, data)

    def _checked(self, name: str, size: int, sha256: str, data: Data) -> Data:
        if len(data) != size or _sha256(data) != sha256:
            actual = f"{len(data)} bytes, not {size}" if len(data) != size else "another checksum"
            raise DataError(
                f"{self.location}{name} is not what the set's index says ({actual}): damaged, or "
                "of "
                "another set; copy it again"
            )
        return data

    def _index(self) -> bytes:
        if self._store is None:
            return _read(Path(self.location, INDEX))
        url = joined(self.location, INDEX)
        about = self._store.about(url)
        return self._store.read(url, 0, about.size, about)


def _mapped(path: Path) -> memoryview:
    with _readable(path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b"")


def _read(path: Path) -> bytes:
    with _readable(path):
        return path.read_bytes()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{str(path)!r} cannot be read ({error.strerror}): give the folder or address of a "
            "set that thinwire packed"
        ) from error


def _sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def windows_of(shards: Sequence[Shard], length: int, stride: int) -> Iterator[int]:
    """Return how many windows each shard has: of `length` tokens, one every `stride`."""
    return (max(0, (shard.tokens - length) // stride + 1) for shard in shards)
