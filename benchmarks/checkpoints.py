"""How fast checkpoints of `thinwire train` are written and read, beside torch DCP, which wrote them
before.

    python -m benchmarks.checkpoints --json benchmarks/results/checkpoints.json

Both write and flush the same tensors, in turn. Ours hashes every tensor besides, when it writes and
when it reads.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from benchmarks.common import emit, parser, table
from thinwire.train.checkpoints import Checkpoints, Member

LAYERS = 50  # of 4 MB each, as in a model of 17 M parameters with AdamW's moments


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--runs", type=int, default=7)
    options = arguments.parse_args()
    state = {f"layer{i}.weight": torch.randn(1000, 1000) for i in range(LAYERS)}
    state |= {f"layer{i}.bias": torch.randn(1000) for i in range(LAYERS)}
    gigabytes = sum(tensor.nbytes for tensor in state.values()) / 1e9
    rates: dict[str, list[float]] = {}
    processor: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=".") as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        ours = Checkpoints(folder, Member("ant"), 2, print)

        def write_ours() -> None:
            ours.save(1, state)
            ours.wait()

        def write_dcp() -> None:
            save(state, storage_writer=FileSystemWriter(folder / "dcp"), no_dist=True)

        def read_dcp() -> None:
            load(
                {key: torch.empty_like(tensor) for key, tensor in state.items()},
                checkpoint_id=folder / "dcp",
                no_dist=True,
            )

        ways: dict[str, Callable[[], object]] = {
            "written by DCP": write_dcp,
            "written by ours": write_ours,
            "read by DCP": read_dcp,
            "read by ours": lambda: ours.read(1),
        }
        for _ in range(options.runs):
            for path in (folder / "dcp", ours.path(1)):
                shutil.rmtree(path, ignore_errors=True)
            for way, work in ways.items():
                begun, used = time.perf_counter(), time.process_time()
                work()
                rates.setdefault(way, []).append(gigabytes / (time.perf_counter() - begun))
                processor.setdefault(way, []).append(time.process_time() - used)
    rows = [
        [way, statistics.median(each), max(each), min(processor[way])]
        for way, each in rates.items()
    ]
    table(["", "GB/s, median", "GB/s, best", "least processor seconds"], rows)
    emit(
        options.json,
        {"gigabytes": gigabytes, "runs": options.runs, "gb_per_s": rates, "processor_s": processor},
    )


if __name__ == "__main__":
    main()
