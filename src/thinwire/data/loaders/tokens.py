"""Tokenise a text once for all ranks and jobs of a host, and map the ids from disk into memory.

    <cache>/tokens/<key>/train-00000.bin, …   ids, int32, little-endian, 64 MiB to a shard
                         held-00000.bin, …    the same of the held-out part
                         tokenizer/           what `save_pretrained` wrote
                         meta.json            counts; the size and sha256 of every other file
           texts/<stamp>                      digest of a text, by the look of its files (`stamps`)

The key is a digest of the text, the tokenizer's settings and this layout's version: another text or
tokenizer has another folder, and none is ever changed in place.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thinwire import env
from thinwire.data.cache import DamageError, built_once, cache_folder, fetched_limit
from thinwire.data.claims import claimed
from thinwire.data.corpus.text import Text, changed, read_text
from thinwire.data.corpus.tokenizer import encode, tokenizer_from, tokenizer_key
from thinwire.data.loaders import mapped as mapped_files
from thinwire.data.loaders.batches import Batches
from thinwire.data.loaders.mapped import in_shards
from thinwire.data.loaders.order import Reader
from thinwire.data.loaders.sets import SetReader
from thinwire.data.loaders.stamps import remember, remembered, stamp
from thinwire.data.loaders.streamed import Streamed
from thinwire.data.remote.peers import peers_from
from thinwire.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FORMAT = 2
SET = "set:"
META, TOKENIZER = "meta.json", "tokenizer"
VERIFIED_BYTES = (
    2 * 10**9
)  # of all files together; checksums of more would delay every start by seconds


@dataclass(frozen=True, eq=False)
class Tokens:
    """A text as ids, with the eos token after each document.

    Args:
        train: (tokens,) int32, mapped into memory; a write to it stays in this process.
        held: the same of the held part.
        train_bytes: bytes of text that `train` stands for; the eos tokens stand for none.
        held_bytes: the same of `held`. Bits per byte = nats per token · len(held) / (held_bytes ·
            ln 2).
        digest: sha256 in hexadecimal of the ids of both parts, which ranks and resumed runs must
            agree on.
    """

    train: Tensor
    held: Tensor
    held_bytes: int
    train_bytes: int
    digest: str

    @property
    def train_tokens(self) -> int:
        return len(self.train)

    def batches(
        self, who: Reader, *, length: int, overlap: int = 0, seed: int = 0
    ) -> Batches | Streamed:
        """Return the batches of a rank by step; `overlap` is for sets only, whose windows lie side
        by side."""
        return Batches(
            self.train,
            length=length,
            batch=who.batch,
            seed=seed,
            rank=who.rank,
            world=who.world,
            origin=who.origin,
        )


@dataclass(frozen=True, eq=False)
class StreamedTokens(Tokens):
    """A packed set, whose shards are fetched as they are read; `train` is empty."""

    source: SetReader

    @property
    def train_tokens(self) -> int:
        return self.source.set.train_tokens

    def batches(
        self, who: Reader, *, length: int, overlap: int = 0, seed: int = 0
    ) -> Batches | Streamed:
        return Streamed(self.source, who, length=length, overlap=overlap, seed=seed)


def prepare(
    source: str,
    tokenizer_spec: str,
    specials: Sequence[str],
    cache: Path | None = None,
    hosts: Collection[str] = (),
) -> tuple[PreTrainedTokenizerFast, Tokens]:
    """Return the tokenizer and the text's ids, from the cache; they are made first if they are not
    there.

    Any number of processes may call this at once: one builds and the others wait for it.

    Args:
        source: the text, as `read_text` takes it, or `set:PLACE`, a packed set in a folder or at an
            address, which has a tokenizer of its own: `tokenizer_spec` is then empty. A text is
            read where its files are not known to be those in the cache (`stamps`).
        tokenizer_spec: as `tokenizer_from` takes it.
        specials: the special tokens that are needed, `<|endoftext|>` among them.
        cache: a folder to keep it in, by default `cache_folder()`.
        hosts: names of hosts that an address may lead to, beside its own.

    Raises:
        DataError: the text or tokenizer cannot be had, or the cache cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tokenizer, tokens = prepare("bundled", "byte", ["<|endoftext|>"], Path(folder))
        >>> tokenizer.decode(tokens.train[:21]), tokens.train.dtype
        ('SENSE AND SENSIBILITY', torch.int32)
        >>> len(tokens.held) - tokens.held_bytes
        21
    """
    specials = tuple(specials)
    if source.startswith(SET):
        return _streamed(
            source.removeprefix(SET),
            tokenizer_spec,
            specials,
            (cache or cache_folder()).expanduser(),
            hosts,
        )
    # A wrong tokenizer is refused before the text is read, since that takes no time.
    key = tokenizer_key(tokenizer_spec, specials)
    cache_root = (cache or cache_folder()).expanduser()
    text = _Text(source, cache_root, hosts)
    # The key names everything that the ids depend on: another text or tokenizer has another folder.
    request = json.dumps([FORMAT, text.digest, key, specials])
    folder = cache_root / "tokens" / hashlib.sha256(request.encode()).hexdigest()[:32]

    def build(at: Path) -> None:
        _build(at, text.read(), tokenizer_from(tokenizer_spec, text.read(), specials))

    tokens = built_once(folder, build, _open)
    return tokenizer_from(str(folder / TOKENIZER), Text(source, (), ()), specials), tokens


def _streamed(
    location: str, tokenizer_spec: str, specials: Sequence[str], cache: Path, hosts: Collection[str]
) -> tuple[PreTrainedTokenizerFast, Tokens]:
    if tokenizer_spec:
        raise DataError(
            f"the set {location!r} comes with its own tokenizer, and {tokenizer_spec!r} was asked "
            "for; leave that out"
        )
    if not location:
        raise DataError(f"{SET!r} names no set; say {SET}FOLDER or {SET}https://HOST/FOLDER/")
    # Ranks of a host share its cache, so one of them serves it.
    peers = peers_from()
    source = SetReader(location, cache / "fetched", fetched_limit(), peers, hosts)
    if peers is not None and env.local_rank() == 0:
        peers.serve(source.by_checksum)
    packed = source.set
    tokenizer = source.tokenizer(specials)
    held = torch.from_numpy(source.held())
    return tokenizer, StreamedTokens(
        held[:0], held, packed.held_bytes, packed.train_bytes, packed.digest, source
    )


class _Text:
    """A text that is read when its content is needed; its digest is known without reading if its
    files are unchanged."""

    def __init__(self, source: str, cache: Path, hosts: Collection[str]) -> None:
        self._source, self._cache, self._hosts = source, cache, hosts
        stamps_folder = cache / "texts"
        self._text: Text | None = None
        stamped = stamp(source, hosts)
        self._digest = stamped and remembered(stamps_folder, stamped)
        if stamped and not self._digest:
            with suppress(OSError):  # where nothing can be written, every rank reads
                stamps_folder.mkdir(parents=True, exist_ok=True)
                with claimed(stamps_folder / stamped):  # of the ranks of a host one reads
                    self._digest = remembered(stamps_folder, stamped) or self.read().digest
                    remember(stamps_folder, stamped, self._digest, lambda: stamp(source, hosts))

    @property
    def digest(self) -> str:
        return self._digest or self.read().digest

    def read(self) -> Text:
        """Return the text.

        Raises:
            DataError: it cannot be read, or is no longer the one that its digest says.
        """
        if self._text is None:
            self._text = read_text(self._source, self._cache, hosts=self._hosts)
            if self._digest and self._text.digest != self._digest:
                raise changed(self._source)
        return self._text


def _build(folder: Path, text: Text, tokenizer: PreTrainedTokenizerFast) -> None:
    meta: dict[str, Any] = {"format": FORMAT, "text": text.name}
    # 1. Shards of ids, with a digest of each part.
    written: dict[str, dict[str, Any]] = {}
    for name, size in zip(("train", "held"), text.sizes(), strict=True):
        shards, digest = [], hashlib.sha256()
        for number, ids in enumerate(
            in_shards(encode(tokenizer, getattr(text, name)), mapped_files.SHARD_TOKENS)
        ):
            file = f"{name}-{number:05}.bin"
            written[file] = _write(folder / file, ids, digest)
            shards.append(file)
        tokens = sum(written[file]["bytes"] for file in shards) // 4
        meta[name] = {
            "tokens": tokens,
            "bytes": size,
            "sha256": digest.hexdigest(),
            "shards": shards,
        }
    # 2. The tokenizer, as files of the set.
    tokenizer.save_pretrained(folder / TOKENIZER)
    for path in sorted((folder / TOKENIZER).rglob("*")):
        if path.is_file():
            written[path.relative_to(folder).as_posix()] = {
                "bytes": path.stat().st_size,
                "sha256": _sha256(path),
            }
    # 3. The list of all files with their checksums.
    meta["files"] = written
    (folder / META).write_text(json.dumps(meta, indent=1), encoding="utf-8")
    # Flush everything, or a power cut could leave the new name with empty files.
    for path in (
        *(folder / name for name in written),
        folder / META,
    ):
        with path.open("rb") as opened:
            os.fsync(opened.fileno())


def _write(path: Path, ids: Iterable[NDArray[np.int32]], whole: Any) -> dict[str, Any]:
    """Write ids into a file and return its size and checksum; `whole` is the checksum of all files
    of the part."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for each in ids:
            data = np.ascontiguousarray(each, dtype="<i4").data
            file.write(data)
            digest.update(data)
            whole.update(data)
            size += data.nbytes
    return {"bytes": size, "sha256": digest.hexdigest()}


def _open(folder: Path) -> Tokens:
    """Return the tokens of a complete folder.

    Raises:
        DamageError: a file is missing, or of another size or content than when it was written.
    """
    try:
        # 1. Sizes of all files, and checksums unless there is too much to read at every start.
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        files: dict[str, dict[str, Any]] = meta["files"]
        whole = sum(int(written["bytes"]) for written in files.values()) < VERIFIED_BYTES
        with ThreadPoolExecutor(2) as pool:  # sha256 lets go of the interpreter
            list(
                pool.map(
                    lambda name: _verify(
                        folder / name,
                        int(files[name]["bytes"]),
                        whole and str(files[name]["sha256"]),
                    ),
                    files,
                )
            )
        # 2. Map the shards.
        shards = {name: list(map(str, meta[name]["shards"])) for name in ("train", "held")}
        train, held = (
            mapped_files.mapped([folder / file for file in shards[name]], int(meta[name]["tokens"]))
            for name in shards
        )
        digest = hashlib.sha256(
            "".join(str(meta[name]["sha256"]) for name in shards).encode()
        ).hexdigest()
        return Tokens(train, held, int(meta["held"]["bytes"]), int(meta["train"]["bytes"]), digest)
    except DamageError:  # which is a ValueError, like all of DataError
        raise
    except FileNotFoundError as error:
        raise DamageError(f"{Path(error.filename).name} is missing") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamageError(f"{META} is not what was written there") from error


def _verify(path: Path, size: int, sha256: str | bool) -> None:
    file_stat = path.stat()
    if not stat.S_ISREG(file_stat.st_mode) or file_stat.st_size != size:
        raise DamageError(f"{path.name} has {file_stat.st_size} bytes, not {size}")
    if sha256 and _sha256(path) != sha256:
        raise DamageError(f"{path.name} has changed")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
