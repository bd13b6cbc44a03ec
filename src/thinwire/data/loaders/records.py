"""Keep samples that are not text, such as images and sounds: named columns on disk, mapped into
memory and read by row.

A column is an array (samples, …) of one shape for all, or ragged: pieces of one array, a beginning
and an end for each sample. Batches come in the same orders as text's, are made ahead by the same
`Prefetch`, and a run goes on from any step in any world.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thinwire.data.cache import DamageError, built_once, cache_folder
from thinwire.data.loaders.order import Order, Reader, scattered
from thinwire.errors import DataError

META, FORMAT = "meta.json", 1
Columns = Mapping[str, NDArray[Any] | Sequence[NDArray[Any]]]
Rows = dict[str, NDArray[Any] | list[NDArray[Any]]]
Collate = Callable[[Rows, Sequence[int]], Mapping[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Ragged:
    """Samples of different lengths, side by side: sample i is `values[ends[i - 1]:ends[i]]`."""

    values: NDArray[Any]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> NDArray[Any]:
        return self.values[self.ends[number - 1] if number else 0 : self.ends[number]]


@dataclass(frozen=True, eq=False)
class Records:
    """Named columns, with the same number of samples each.

    Args:
        columns: arrays (samples, …), or `Ragged`.
        digest: sha256 in hexadecimal of all of them, which ranks and resumed runs must agree on.
    """

    columns: dict[str, NDArray[Any] | Ragged]
    digest: str

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def rows(self, samples: Sequence[int]) -> Rows:
        """Return some samples of every column: arrays (samples, …); a list for ragged columns."""
        return {
            name: [column[sample] for sample in samples]
            if isinstance(column, Ragged)
            else column[np.asarray(samples)]
            for name, column in self.columns.items()
        }

    def batches(
        self,
        who: Reader,
        *,
        seed: int = 0,
        collate: Collate | None = None,
        order: Order | None = None,
    ) -> RecordBatches:
        """Return the batches of a rank by step.

        Args:
            who: this rank, its batch and its world.
            seed: another seed, another order.
            collate: rows, and their numbers in the run, as tensors; by default each column as it
                is.
            order: another than `scattered`; it brings its own seed.

        Raises:
            DataError: fewer samples than one step reads.
        """
        return RecordBatches(self, who, order or scattered(len(self), seed), collate or as_tensors)


class RecordBatches:
    """Batches of records: see `Records.batches`."""

    def __init__(self, records: Records, who: Reader, order: Order, collate: Collate) -> None:
        if len(records) < who.world * who.batch:
            raise DataError(
                f"a step needs {who.world * who.batch} different samples, and there are "
                f"{len(records)}; take a smaller batch or fewer ranks"
            )
        self.records, self.who, self.order, self.collate = records, who, order, collate

    def at(self, step: int) -> Mapping[str, Tensor]:
        """Return the batch of this rank at `step`, whatever was read before.

        Raises:
            ValueError: a step below 0, or before the origin.
        """
        rows = self.order.rows(step, self.who)
        return self.collate(self.records.rows(self.order.of(rows).tolist()), rows.tolist())


def as_tensors(rows: Rows, numbers: Sequence[int]) -> Mapping[str, Tensor]:  # noqa: ARG001 (as all collators are called)
    """Return each column as a tensor; ragged ones padded with zeros, with their lengths as
    `<name>_length`.

    Example:
        >>> columns = {"sound": [np.ones(2), np.ones(1)], "word": np.array([7, 8])}
        >>> batch = as_tensors(columns, [0, 1])
        >>> {name: tensor.tolist() for name, tensor in batch.items()}
        {'sound': [[1.0, 1.0], [1.0, 0.0]], 'sound_length': [2, 1], 'word': [7, 8]}
    """
    out: dict[str, Tensor] = {}
    for name, column in rows.items():
        # Ragged: as long as the longest of this batch, zeros behind, and the lengths beside.
        if isinstance(column, list):
            lengths = torch.tensor([len(each) for each in column])
            filled = np.zeros(
                (len(column), int(lengths.max()), *column[0].shape[1:]), dtype=column[0].dtype
            )
            for at, each in enumerate(column):
                filled[at, : len(each)] = each
            out |= {name: torch.from_numpy(filled), f"{name}_length": lengths}
        else:
            out[name] = torch.from_numpy(np.ascontiguousarray(column))
    return out


def in_memory(columns: Columns) -> Records:
    """Take columns as they are; a list of arrays is ragged.

    Raises:
        DataError: no samples, or columns of different lengths.

    Example:
        >>> records = in_memory({"pixels": np.zeros((10, 8, 8)), "digit": np.arange(10)})
        >>> batch = records.batches(Reader(batch=4)).at(0)
        >>> {name: tuple(tensor.shape) for name, tensor in batch.items()}
        {'pixels': (4, 8, 8), 'digit': (4,)}
    """
    # The digest covers names, types, shapes and bytes: two sets of one digest are equal.
    lengths = {name: len(column) for name, column in columns.items()}
    if not lengths or min(lengths.values()) < 1 or len(set(lengths.values())) > 1:
        raise DataError(
            f"columns have as many samples each, and at least one; these have {lengths or 'none'}"
        )
    made = {
        name: column if isinstance(column, np.ndarray) else _joined(column)
        for name, column in columns.items()
    }
    digest = hashlib.sha256()
    for name, array in _arrays(made):
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).data if array.size else b"")
    return Records(made, digest.hexdigest())


def cached(name: str, key: str, make: Callable[[], Columns], cache: Path | None = None) -> Records:
    """Return columns from the cache; one process makes them first if they are not there. They are
    checked at every start.

    Args:
        name: of the data set, for people.
        key: whatever decides its content: versions, checksums, settings.
        make: the columns.
        cache: a folder to keep it in, by default `cache_folder()`.

    Raises:
        DataError: they cannot be made, or kept.
    """
    folder = (cache or cache_folder()).expanduser() / "records"
    return built_once(
        folder / hashlib.sha256(f"{FORMAT} {name} {key}".encode()).hexdigest()[:32],
        lambda at: _write(at, name, make()),
        _open,
    )


def _joined(arrays: Sequence[NDArray[Any]]) -> Ragged:
    return Ragged(
        np.concatenate(list(arrays)), np.cumsum([len(piece) for piece in arrays], dtype=np.int64)
    )


def _arrays(columns: Mapping[str, NDArray[Any] | Ragged]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Return the arrays of all columns, each by its file name."""
    for name, column in columns.items():
        if isinstance(column, Ragged):
            yield from ((f"{name}.values", column.values), (f"{name}.ends", column.ends))
        else:
            yield name, column


def _write(folder: Path, name: str, columns: Columns) -> None:
    # The checksums go last, into the file whose presence makes the folder whole.
    records = in_memory(columns)
    sums = {}
    for file, array in _arrays(records.columns):
        np.save(folder / f"{file}.npy", array, allow_pickle=False)
        sums[file] = _sha256(folder / f"{file}.npy")
    ragged = [each for each, column in records.columns.items() if isinstance(column, Ragged)]
    meta = {
        "format": FORMAT,
        "name": name,
        "columns": list(records.columns),
        "ragged": ragged,
        "digest": records.digest,
        "sha256": sums,
    }
    (folder / META).write_text(json.dumps(meta, indent=1), encoding="utf-8")


def _open(folder: Path) -> Records:
    try:
        # Hash before mapping: a reader must not find damage in mid-run.
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        for file, written in meta["sha256"].items():
            if _sha256(folder / f"{file}.npy") != written:
                raise DamageError(f"{file}.npy has changed")

        # Mapped copy-on-write: a write stays in this process.
        def array(file: str) -> NDArray[Any]:
            loaded: NDArray[Any] = np.load(
                folder / f"{file}.npy", mmap_mode="c", allow_pickle=False
            )
            return loaded

        columns: dict[str, NDArray[Any] | Ragged] = {}
        for name in meta["columns"]:
            columns[name] = (
                Ragged(array(f"{name}.values"), array(f"{name}.ends"))
                if name in meta["ragged"]
                else array(name)
            )
        return Records(columns, str(meta["digest"]))
    except DamageError:
        raise
    except FileNotFoundError as error:
        raise DamageError(f"{Path(error.filename).name} is missing") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamageError(f"{META} is not what was written there") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
