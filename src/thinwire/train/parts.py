"""Write and read one checkpoint folder: a safetensors file of each rank, and a manifest with the
hash of every tensor.

rank-3.safetensors    the tensors that rank 3 wrote
manifest.json         format, step, run, host and world; the length of each file, and the hashes of
                      its header and its tensors

No file is a pickle. Every bit counts: a file's bytes are all hashed, and the manifest must be what
its own content would be written as.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from thinwire.errors import CheckpointError
from thinwire.text.words import first_line
from thinwire.version import __version__

FORMAT = 2
"""Of the folder; 1 was a torch DCP folder."""
MANIFEST = "manifest.json"
_LENGTH = 8  # a safetensors file begins with the length of its header


class DamagedError(CheckpointError):
    """A checkpoint is not what was saved; an older one may still be good."""


@dataclass(frozen=True)
class Part:
    """The file of one rank.

    header: the hash of its file's header.
    tensors: the hash of each tensor's bytes, by name.
    """

    rank: int
    length: int
    header: str
    tensors: Mapping[str, str]

    @property
    def file(self) -> str:
        """The name of the file."""
        return f"rank-{self.rank}.safetensors"

    @classmethod
    def parse(cls, facts: Any) -> Part:
        """Check facts that come from another rank or a file.

        Raises:
            ValueError: they are no facts of a part.
        """
        part = cls(*(_typed(facts, name, kind) for name, kind in PART.items()))
        if part.rank < 0 or not all(isinstance(digest, str) for digest in part.tensors.values()):
            raise ValueError("a rank or a hash is none")
        return part


@dataclass(frozen=True)
class Manifest:
    """The content of a checkpoint folder.

    run: drawn anew whenever ranks start or resume, and the same on all hosts.
    world: how many ranks saved, on all hosts together.
    """

    step: int
    run: str
    host: str
    world: int
    parts: tuple[Part, ...]

    @property
    def ranks(self) -> list[int]:
        """The ranks that wrote into this folder."""
        return [part.rank for part in self.parts]


PART = {"rank": int, "length": int, "header": str, "tensors": dict}
FACTS = {"step": int, "run": str, "host": str, "world": int}


def write_part(folder: Path, rank: int, tensors: Mapping[str, Tensor]) -> Part:
    """Write the tensors of a rank into its own file, and flush it to the disk.

    Raises:
        CheckpointError: safetensors cannot write them.
    """
    path = folder / Part(rank, 0, "", {}).file
    # Hash in a thread beside the write, from the same memory.
    try:
        whole = _unshared(tensors)
        with ThreadPoolExecutor(1) as beside:
            hashes = beside.submit(lambda: {name: _hash(tensor) for name, tensor in whole.items()})
            save_file(whole, path)
    except KeyError as error:
        raise CheckpointError(
            f"{path.name} could not be written: safetensors has no {first_line(error)}"
        ) from error
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path.name} could not be written: {first_line(error)}") from error
    # Flush to the disk before the manifest names the file.
    with path.open("rb") as file:
        os.fsync(file.fileno())
        header = _header(file)
        return Part(rank, os.fstat(file.fileno()).st_size, header, hashes.result())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest once every rank has written its part, and flush it to the disk."""
    with (folder / MANIFEST).open("wb") as file:
        file.write(_sealed(_facts(manifest)))
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder.

    Raises:
        DamagedError: the manifest is missing or is not what was written.
        CheckpointError: another version of Thinwire wrote it in another format.
    """
    path = folder / MANIFEST
    # 1. The bytes, and the hash that seals them.
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path}: {error.strerror}") from error
    try:
        facts = json.loads(raw)["manifest"]
        sealed = _sealed(facts)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: it is no manifest") from error
    if raw != sealed:
        raise DamagedError(f"{path} is damaged: its hash is not that of its content")
    # 2. The format before the fields: another version's are not damaged.
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        version, number = (
            (facts.get("thinwire"), facts.get("format"))
            if isinstance(facts, dict)
            else (None, None)
        )
        raise CheckpointError(
            f"{folder} has format {number!r} of thinwire {version}; this version reads 1 and "
            f"{FORMAT}"
        )
    # 3. The fields, each of its type.
    try:
        parts = tuple(map(Part.parse, _typed(facts, "parts", list)))
        own = {name: _typed(facts, name, kind) for name, kind in FACTS.items()}
        manifest = Manifest(**own, parts=parts)
    except ValueError as error:
        raise DamagedError(f"{path} is no manifest: {error}") from error
    if len(set(manifest.ranks)) < len(parts):
        raise DamagedError(f"{path} is no manifest: a rank is in it twice")
    return manifest


def read_part(
    folder: Path, part: Part, needs: Callable[[str], bool] = lambda _: True
) -> dict[str, Tensor]:
    """Read the file of a rank, and compare it with its hashes.

    Args:
        folder: the checkpoint.
        part: the rank's file.
        needs: whether a tensor is kept, by its name; one that is not is compared and dropped.

    Raises:
        DamagedError: the file is missing, or is not what was written.
    """
    path = folder / part.file
    # 1. Length and header before safetensors parses anything.
    try:
        with path.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            if length != part.length:
                raise DamagedError(
                    f"{path} is damaged: it has {length:,} bytes, and {part.length:,} were saved"
                )
            if _header(file) != part.header:
                raise DamagedError(f"{path} is damaged: its header is not what was saved")
        # 2. The tensors, and the hash of each over the bytes that are used: without a clone each
        # would be a view of the file.
        out = {}
        with safe_open(path, framework="pt") as tensors:
            if set(tensors.keys()) != set(part.tensors):
                raise DamagedError(f"{path} holds other tensors than {MANIFEST} names")
            for name, digest in part.tensors.items():
                value = tensors.get_tensor(name).clone()
                if _hash(value) != digest:
                    raise DamagedError(
                        f"{path} is damaged: {name!r} has other values than were saved"
                    )
                if needs(name):
                    out[name] = value
    except OSError as error:
        raise DamagedError(f"{path}: {error.strerror or first_line(error)}") from error
    except SafetensorError as error:
        raise DamagedError(f"{path} is damaged: {first_line(error)}") from error
    return out


def _facts(manifest: Manifest) -> dict[str, Any]:
    parts = [{name: getattr(part, name) for name in PART} for part in manifest.parts]
    facts = {name: getattr(manifest, name) for name in FACTS}
    return {"format": FORMAT, "thinwire": __version__, **facts, "parts": parts}


def _sealed(facts: Any) -> bytes:
    """Return the bytes of the manifest's file: its content, and the hash of it."""
    content = json.dumps(facts)
    digest = hashlib.sha256(content.encode()).hexdigest()
    return f'{{"sha256": "{digest}", "manifest": {content}}}\n'.encode()


def _typed(facts: Any, name: str, kind: type) -> Any:
    value = facts.get(name) if isinstance(facts, dict) else None
    if type(value) is not kind:
        raise ValueError(f"{name!r} is no {kind.__name__}")
    return value


def _header(file: Any) -> str:
    """Return the hash of a safetensors file up to its first tensor."""
    first = file.read(_LENGTH)
    size = int.from_bytes(first, "little")
    rest = file.read(min(size, os.fstat(file.fileno()).st_size))
    return _digest(first + rest)


def _hash(tensor: Tensor) -> str:
    return _digest(tensor.reshape(-1).view(torch.uint8).numpy())


def _digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()[
        :32
    ]  # processors have instructions for it: twice as fast as blake2b


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that share no memory, as safetensors requires."""
    out: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage()
        if storage.data_ptr() in taken or storage.nbytes() != plain.nbytes:
            plain = plain.clone()
        taken.add(plain.untyped_storage().data_ptr())
        out[name] = plain
    return out
