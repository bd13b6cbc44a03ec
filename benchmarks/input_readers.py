"""The same rows through each library's own reader: `python -m benchmarks.input_readers NAME FOLDER
SECONDS` prints one JSON object.

Every reader gives batches of 32 rows of 129 tokens, int64, in random order, out of the same 20
million tokens in the format that it is made for, which `prepare` writes. Each is run in a process
of its own by `benchmarks.input`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROWS, LENGTH, STRIDE = 32, 129, 128


def ids(folder: Path) -> Any:
    """The tokens: (tokens,) int32, mapped."""
    return np.memmap(folder / "tokens.bin", dtype="<i4", mode="r")


def windows(folder: Path) -> Any:
    """The same as rows side by side: (rows, 129) int32."""
    flat = ids(folder)
    count = (len(flat) - LENGTH) // STRIDE + 1
    return np.lib.stride_tricks.as_strided(flat, (count, LENGTH), (4 * STRIDE, 4))


class Rows(torch.utils.data.Dataset[torch.Tensor]):
    """A map-style dataset, as users write it."""

    def __init__(self, folder: Path) -> None:
        self.rows = windows(folder)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> torch.Tensor:
        return torch.from_numpy(self.rows[number].astype(np.int64))


def thinwire_batches(folder: Path) -> Iterator[Any]:
    from thinwire.data import Batches

    batches = Batches(torch.from_numpy(np.array(ids(folder))), length=LENGTH, batch=ROWS)
    yield from map(batches.at, range(10**9))


def thinwire_prefetch(folder: Path) -> Iterator[Any]:
    from thinwire.data import Batches, Prefetch

    batches = Batches(torch.from_numpy(np.array(ids(folder))), length=LENGTH, batch=ROWS)
    with Prefetch(batches.at) as ahead:
        yield from map(ahead.at, range(10**9))


def thinwire_set(folder: Path) -> Iterator[Any]:
    from thinwire.data import Reader, SetReader, Streamed

    stream = Streamed(
        SetReader(str(folder / "set"), folder / "cache", 10**10),
        Reader(ROWS),
        length=LENGTH,
        overlap=1,
    )
    yield from map(stream.at, range(10**9))


def processes(folder: Path) -> Iterator[Any]:
    """Thinwire's batches made by a process, and sent as torch sends tensors: what `Prefetch` would
    be with processes."""
    from thinwire.data import Batches

    class Steps(torch.utils.data.Dataset[torch.Tensor]):
        def __init__(self) -> None:
            self.batches = Batches(
                torch.from_numpy(np.array(ids(folder))), length=LENGTH, batch=ROWS
            )

        def __len__(self) -> int:
            return 10**9

        def __getitem__(self, step: int) -> torch.Tensor:
            return self.batches.at(step)

    yield from torch.utils.data.DataLoader(
        Steps(), batch_size=None, num_workers=1, prefetch_factor=2
    )


def loader(workers: int) -> Callable[[Path], Iterator[Any]]:
    def read(folder: Path) -> Iterator[Any]:
        while True:
            yield from torch.utils.data.DataLoader(
                Rows(folder), batch_size=ROWS, shuffle=True, num_workers=workers
            )

    return read


def stateful(workers: int) -> Callable[[Path], Iterator[Any]]:
    def read(folder: Path) -> Iterator[Any]:
        from torchdata.stateful_dataloader import StatefulDataLoader

        while True:
            yield from StatefulDataLoader(
                Rows(folder), batch_size=ROWS, shuffle=True, num_workers=workers
            )

    return read


def nodes(folder: Path) -> Iterator[Any]:
    from torchdata import nodes as tn

    rows = Rows(folder)
    node = tn.MapStyleWrapper(map_dataset=rows, sampler=torch.utils.data.RandomSampler(rows))
    node = tn.Prefetcher(tn.Mapper(tn.Batcher(node, ROWS), torch.stack), prefetch_factor=2)
    while True:
        yield from tn.Loader(node)


def hf_datasets(folder: Path) -> Iterator[Any]:
    import datasets

    rows = datasets.load_from_disk(str(folder / "arrow")).with_format("torch")
    for epoch in range(10**9):
        yield from (batch["ids"] for batch in rows.shuffle(seed=epoch).iter(ROWS))


def litdata(folder: Path) -> Iterator[Any]:
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader

    data = StreamingDataset(
        str(folder / "litdata"), item_loader=TokensLoader(block_size=LENGTH), shuffle=True
    )
    while True:
        yield from (
            batch.long() for batch in StreamingDataLoader(data, batch_size=ROWS, num_workers=0)
        )


def mosaic(folder: Path) -> Iterator[Any]:
    from streaming import StreamingDataset

    data = StreamingDataset(
        local=str(folder / "mds"), shuffle=True, batch_size=ROWS, num_canonical_nodes=1
    )
    while True:
        yield from (
            batch["ids"].long()
            for batch in torch.utils.data.DataLoader(data, batch_size=ROWS, num_workers=0)
        )


READERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    "thinwire Batches": thinwire_batches,
    "thinwire Batches, Prefetch (a thread)": thinwire_prefetch,
    "thinwire Batches, a process": processes,
    "thinwire packed set": thinwire_set,
    "torch DataLoader, 0 workers": loader(0),
    "torch DataLoader, 1 worker": loader(1),
    "torchdata StatefulDataLoader, 0 workers": stateful(0),
    "torchdata StatefulDataLoader, 1 worker": stateful(1),
    "torchdata.nodes, Prefetcher": nodes,
    "datasets, Arrow, shuffled": hf_datasets,
    "litdata TokensLoader": litdata,
    "mosaicml-streaming MDS": mosaic,
}


def _numbered(numbers: list[int], folder: str) -> Iterator[torch.Tensor]:
    flat = np.memmap(Path(folder, "tokens.bin"), dtype="<i4", mode="r")
    step = 1 << 20
    for number in numbers:
        yield torch.from_numpy(np.array(flat[number * step : (number + 1) * step]))


def prepare(folder: Path, documents: list[bytes]) -> dict[str, str]:
    """Write every format; which could not be written, and why."""
    from thinwire.data import Text, encode, tokenizer_from, write_set

    text = Text("input", tuple(documents), (b"held",))
    tokenizer = tokenizer_from("byte", text, ["<|endoftext|>"])
    np.concatenate(list(encode(tokenizer, documents))).astype("<i4").tofile(folder / "tokens.bin")
    write_set(folder / "set", text, tokenizer)
    missing = {}
    for name, write in (("datasets", _arrow), ("litdata", _litdata), ("mosaicml-streaming", _mds)):
        try:
            write(folder)
        except (
            Exception
        ) as error:  # not installed, or another version: the row is missing and says so
            missing[name] = f"{type(error).__name__}: {error}"
    return missing


def _arrow(folder: Path) -> None:
    import datasets

    rows = windows(folder)
    features = datasets.Features({"ids": datasets.Sequence(datasets.Value("int32"), length=LENGTH)})
    parts = (rows[at : at + 10_000] for at in range(0, len(rows), 10_000))
    made = [datasets.Dataset.from_dict({"ids": list(part)}, features=features) for part in parts]
    datasets.concatenate_datasets(made).save_to_disk(str(folder / "arrow"))


def _litdata(folder: Path) -> None:
    from functools import partial

    from litdata import TokensLoader, optimize

    count = -(-len(ids(folder)) >> 20)
    optimize(
        fn=partial(_numbered, folder=str(folder)),
        inputs=[[number] for number in range(count)],
        output_dir=str(folder / "litdata"),
        chunk_size=LENGTH * 8000,
        item_loader=TokensLoader(block_size=LENGTH),
        num_workers=1,
    )


def _mds(folder: Path) -> None:
    from streaming import MDSWriter

    with MDSWriter(out=str(folder / "mds"), columns={"ids": f"ndarray:int32:{LENGTH}"}) as out:
        for row in windows(folder):
            out.write({"ids": np.ascontiguousarray(row)})


def measure(name: str, folder: Path, seconds: float) -> dict[str, float]:
    """Tokens, wall and processor seconds of a reader, its workers' included, after a warm-up."""
    batches = READERS[name](folder)
    for _ in range(20):
        first = next(batches)
    assert tuple(first.shape) == (ROWS, LENGTH), (name, first.shape)
    assert first.dtype == torch.int64, (name, first.dtype)
    count, begun, before = 0, time.perf_counter(), sum(os.times()[:2]) + _children()
    while time.perf_counter() - begun < seconds:
        next(batches)
        count += 1
    wall, cpu = time.perf_counter() - begun, sum(os.times()[:2]) + _children() - before
    return {"tokens": count * ROWS * LENGTH, "wall_s": wall, "cpu_s": cpu}


def _children() -> float:
    """Processor seconds of the processes that this one has running: worker processes."""
    total, tick = 0.0, os.sysconf("SC_CLK_TCK")
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            rest = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(rest[1]) == os.getpid():
            total += (int(rest[11]) + int(rest[12])) / tick
    return total


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))), flush=True)
    os._exit(0)  # some libraries' threads would hold up the end
