"""Read tensors from a torch DCP folder without running anything that a stranger may have written
into it.

DCP keeps its index, `.metadata`, as a pickle, and a pickle may call any function. Here only the
names that DCP itself writes are admitted, and none of them leads to a function or a class of torch:
each becomes a `_Record` of its arguments. Tensors go through `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thinwire.errors import CheckpointError
from thinwire.text.words import first_line

INDEX = ".metadata"
_DCP = "torch.distributed.checkpoint"
_ADMITTED = {
    (f"{_DCP}.metadata", "Metadata"),
    (f"{_DCP}.metadata", "MetadataIndex"),
    (f"{_DCP}.metadata", "TensorStorageMetadata"),
    (f"{_DCP}.metadata", "BytesStorageMetadata"),
    (f"{_DCP}.metadata", "ChunkStorageMetadata"),
    (f"{_DCP}.metadata", "TensorProperties"),
    (f"{_DCP}.metadata", "StorageMeta"),
    (f"{_DCP}.metadata", "_MEM_FORMAT_ENCODING"),
    (f"{_DCP}.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),  # of the folder that was written to
    ("pathlib._local", "PosixPath"),  # from Python 3.13 on
}


class _Record:
    """A stand-in for one pickled object: its arguments and its fields."""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.fields: Any = {}

    def __setstate__(self, fields: Any) -> None:
        self.fields = fields

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]


class _Unpickler(pickle.Unpickler):
    """An unpickler that makes records of what DCP writes, and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        # A new class for each object, as a pickle can write into a class and change all others.
        if (module, name) in _ADMITTED:
            return type(name, (_Record,), {})
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return name
        raise pickle.UnpicklingError(
            f"it names {module}.{name}, which DCP does not write: nothing of it was run"
        )


@dataclass(frozen=True)
class _Chunk:
    """A part of a tensor, and where its bytes lie."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    at: int
    length: int


@dataclass(frozen=True)
class _Entry:
    """A tensor of the folder."""

    dtype: torch.dtype
    size: tuple[int, ...]
    chunks: tuple[_Chunk, ...]


def tensor_names(folder: str | Path) -> list[str]:
    """Return the names of the tensors in a DCP folder.

    Raises:
        CheckpointError: as in `read_tensors`.
    """
    return list(_index(Path(folder)))


def read_tensors(folder: str | Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """Read the tensors of a DCP folder whose names are wanted, on this rank alone.

    Raises:
        CheckpointError: the folder is not DCP's, is damaged, or names something that DCP does not
            write.
    """
    folder = Path(folder)
    return {
        name: _read(folder, name, entry) for name, entry in _index(folder).items() if wanted(name)
    }


def _index(folder: Path) -> dict[str, _Entry]:
    """Return the tensors of a folder's index, by name; raises `CheckpointError`."""
    path = folder / INDEX
    try:
        with path.open("rb") as file:
            top = _Unpickler(file).load()
        return dict(_entries(top))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} holds no torch DCP checkpoint: there is no {INDEX} in it"
        ) from None
    except Exception as error:  # a damaged pickle, or a strange one, may raise whatever it likes
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}: {first_line(error)})"
        ) from error


def _entries(top: Any) -> Iterator[tuple[str, _Entry]]:
    """Yield the tensors of the index; other objects that a user saved are left out."""
    # 1. Where each chunk's bytes lie, by tensor and offset.
    stored: dict[tuple[str, tuple[int, ...]], Any] = {}
    for key, info in top["storage_data"].items():
        if "offset" in key.fields and key["offset"] is not None:
            stored[key["fqn"], _size(key["offset"])] = info
    # 2. The tensors, each with its chunks.
    for name, entry in top["state_dict_metadata"].items():
        if type(entry).__name__ == "TensorStorageMetadata":
            chunks = tuple(
                _chunk(chunk, stored[name, _size(chunk["offsets"])]) for chunk in entry["chunks"]
            )
            yield (
                name,
                _Entry(getattr(torch, entry["properties"].fields[0]), _size(entry["size"]), chunks),
            )


def _chunk(chunk: Any, info: Any) -> _Chunk:
    """Return a chunk as the index describes it; raises `ValueError` where it cannot be read."""
    if info.fields.get("transform_descriptors"):
        raise ValueError(
            f"its tensors are transformed by {info['transform_descriptors']!r}: save without "
            "extensions"
        )
    # A file's name comes from the index, which a stranger may have written: stay in the folder.
    file = info["relative_path"]
    if file != Path(file).name or file in ("", ".", ".."):
        raise ValueError(f"it leads out of the folder, to {file!r}")
    return _Chunk(
        _size(chunk["offsets"]),
        _size(chunk["sizes"]),
        file,
        int(info["offset"]),
        int(info["length"]),
    )


def _size(record: Any) -> tuple[int, ...]:
    """Return the numbers of a pickled torch.Size."""
    numbers = tuple(record.args[0])
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"{numbers} is no size of a tensor")
    return numbers


def _read(folder: Path, name: str, entry: _Entry) -> Tensor:
    """Return one tensor, put together from its chunks."""
    try:
        # Too few elements would leave gaps of whatever the memory held.
        if sum(math.prod(chunk.sizes) for chunk in entry.chunks) != math.prod(entry.size):
            raise ValueError("its chunks do not make up the whole")
        parts = [_part(folder, chunk, entry.dtype) for chunk in entry.chunks]
        out = torch.empty(entry.size, dtype=entry.dtype)
        for chunk, part in zip(entry.chunks, parts, strict=True):
            out[
                tuple(
                    slice(low, low + size)
                    for low, size in zip(chunk.offsets, chunk.sizes, strict=True)
                )
            ] = part
    except Exception as error:  # as above: it is torch's unpickler of tensors, on damaged bytes
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise CheckpointError(f"{name!r} in {folder} cannot be read ({reason})") from error
    return out


def _part(folder: Path, chunk: _Chunk, dtype: torch.dtype) -> Tensor:
    """Read a chunk's values from its file; raises `ValueError` where it holds something else."""
    with (folder / chunk.file).open("rb") as file:
        file.seek(chunk.at)
        part = torch.load(
            io.BytesIO(file.read(chunk.length)), map_location="cpu", weights_only=True
        )
    if not isinstance(part, Tensor) or tuple(part.shape) != chunk.sizes or part.dtype != dtype:
        raise ValueError(f"{chunk.file} holds something else at byte {chunk.at}")
    return part
