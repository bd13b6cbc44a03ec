"""How near a route comes to the wire's limit in the lab, with gloo's own all-reduce beside it.

    python -m benchmarks.wire --json benchmarks/results/wire.json      all cells; --only 1G those whose name holds that

Every rank is a host of its own behind one link, which the lab holds to its rate, frames included: 0.956 is all that payload can have of it
in frames of 1500 bytes. A cell is the median of some flights over warm connections, each from a common start to the last rank's end.
limit: the bytes that a rank must send (closed form) over the link's rate, as a share of the time. gloo: the time of gloo's own all_reduce
of the same float32 values in the same run over ours.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import thinwire.how
import thinwire.what  # noqa: F401  (its members must be known before one is spelled)
from benchmarks.common import Neighbours, emit, parser, table
from thinwire.core import Outcome, Seat, Spec
from thinwire.drive.torch import TorchDriver
from thinwire.lab import Lab, Wire, uniform
from thinwire.spell import spelled

TUNED = {
    "net.ipv4.tcp_slow_start_after_idle": "0",
    "net.ipv4.tcp_rmem": "4096 131072 67108864",
    "net.ipv4.tcp_wmem": "4096 131072 67108864",
}
MB = 1_000_000


@dataclass(frozen=True)
class Cell:
    """values: float32 of each rank. They are cut in slices of `slice_bytes` of values, on `lanes` lanes, as `thinwire.attach` does."""

    world: int
    rate: float
    rtt: float
    codec: str
    values: int
    slice_bytes: int
    lanes: int
    route: str = "two_shot()"
    congestion: str = "cubic"
    gloo: bool = True
    turns: int = 5

    @property
    def name(self) -> str:
        """For people."""
        rate = f"{self.rate / 1e9:g}G" if self.rate >= 1e9 else f"{self.rate / 1e6:g}M"
        far = f", {self.rtt * 1e3:g} ms, {self.congestion}" if self.rtt else ""
        return f"{rate}{far}, K={self.world}, {self.codec}, {self.values * 4 / MB:.0f} MB fp32"


def cells() -> list[Cell]:
    """The table: no round trip to speak of; 32 MB of values beside gloo; long links."""
    whole = 1 << 30  # one slice: on a short link a single lane fills the line best
    short = [(world, rate) for rate in (1e8, 1e9) for world in (2, 4, 8)]
    made = [Cell(world, rate, 0.0, "identity()", 8 * MB, whole, 1, turns=3) for world, rate in short]  # 32 MB of payload
    made += [Cell(world, rate, 0.0, "uniform(4)", 62 * MB, 64 * MB, 2, gloo=False, turns=3) for world, rate in short]  # as much
    made += [Cell(4, rate, 0.0, codec, 8 * MB, 8 * MB, 2) for rate in (1e8, 1e9) for codec in ("uniform(4)", "sign()")]
    made += [
        Cell(4, 1e9, rtt, "identity()", 16 * MB, 16 * MB, 4, congestion=congestion)  # 64 MB of payload
        for rtt in (0.05, 0.1)
        for congestion in ("bbr", "cubic")
    ]
    return made


class Ranks:
    """One rank of a cell, within its host."""

    def __init__(self, cell: Cell) -> None:
        self.rank, self.cell = int(os.environ["RANK"]), cell
        torch.set_num_threads(1)
        dist.init_process_group("gloo", timeout=timedelta(seconds=120))
        self.driver = TorchDriver(None, cell.lanes, timedelta(seconds=120), torch.device("cpu"))
        self.route, self.codec = spelled("how", cell.route), spelled("what", cell.codec)
        self.driver.prepare(self.route.groups(cell.world))
        self.seat = Seat(self.rank, tuple(range(cell.world)), 0, 0)
        whole = Spec((), 0, cell.values, torch.float32)
        self.spans = whole.cut(-(-4 * cell.values // cell.slice_bytes), max(self.codec.grain * cell.world, 1))
        self.states = [self.route.init(self.codec, span, self.seat) for span in self.spans]
        self.x = torch.randn(cell.values, generator=torch.Generator().manual_seed(self.rank))
        self.closed = sum(self.route.sent_nbytes(self.codec, span, self.seat) or 0.0 for span in self.spans)

    def fly(self) -> list[Outcome]:
        """Every slice there and back."""
        handles = []
        for i, (span, state) in enumerate(zip(self.spans, self.states, strict=True)):
            flight = self.route.carry(self.codec, self.x[span.begin : span.end], span, state, self.seat)
            handles.append(self.driver.start(flight, i % self.cell.lanes, f"slice {i}"))
        return [handle.wait() for handle in handles]

    def gloo(self) -> None:
        """gloo's own."""
        dist.all_reduce(self.x)

    def timed(self, act: Any) -> float:
        """Seconds of a turn, from a common start to the last rank's end."""
        dist.barrier()
        begun = time.perf_counter()
        act()
        told = torch.tensor([time.perf_counter() - begun], dtype=torch.float64)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return float(told)

    def run(self) -> dict[str, Any]:
        """Turns of both, one after the other."""
        acts = {"ours": self.fly} | ({"gloo": self.gloo} if self.cell.gloo else {})
        for act in acts.values():
            self.timed(act)
        told: dict[str, Any] = {name: [] for name in acts}
        for _ in range(self.cell.turns):
            for name, act in acts.items():
                told[name].append(self.timed(act))
        self.driver.close()
        return told | {"closed_bytes": self.closed}


def measured(cell: Cell) -> dict[str, Any]:
    """A cell in a lab of its own."""
    network = uniform(cell.world, rate=cell.rate, wire=Wire(rtt=cell.rtt), congestion=cell.congestion, sysctl=TUNED if cell.rtt else {})
    with tempfile.TemporaryDirectory() as scratch, Neighbours() as busy, Lab(network) as lab:
        file = Path(scratch) / "told.json"
        heard: list[str] = []
        command = [sys.executable, "-m", "benchmarks.wire", "--rank", json.dumps(asdict(cell)), "--json", str(file)]
        done = lab.run(command, timeout=600, on_line=lambda _host, line, _bad: heard.append(line))
        if done.worst:
            raise RuntimeError("\n".join(heard[-20:]))
        told = json.loads(file.read_text())
    ours = statistics.median(told["ours"])
    limit = 8 * told["closed_bytes"] / cell.rate
    beside = {"gloo_s": statistics.median(told["gloo"]), "gloo_over_ours": statistics.median(told["gloo"]) / ours} if cell.gloo else {}
    return {"name": cell.name, **asdict(cell), "ours_s": ours, "limit": limit / ours, **beside, "neighbours": busy.cores, "turns_s": told}


def row(told: dict[str, Any]) -> list[str]:
    """A line of the table."""
    ratio = f"{told['gloo_over_ours']:.2f}" if "gloo_over_ours" in told else "–"
    return [told["name"], f"{told['ours_s']:.3f}", f"{told['limit']:.3f}", ratio]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--only", default="")
    made.add_argument("--rank", help="within a host of the lab: the cell")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of every cell, to try: lanes=4, slice_bytes=…")
    asked = made.parse_args()
    if asked.rank:
        ranks = Ranks(Cell(**json.loads(asked.rank)))
        told = ranks.run()
        if ranks.rank == 0:
            asked.json.write_text(json.dumps(told))
        dist.destroy_process_group()
        return
    settings = {
        key: value if key in ("codec", "route", "congestion") else int(value)
        for key, _, value in (each.partition("=") for each in asked.set)
    }
    rows = []
    for cell in cells():
        if asked.only in cell.name:
            rows.append(measured(Cell(**asdict(cell) | settings)))
            print(*row(rows[-1]), sep="  ", flush=True)
    print()
    table(["cell", "seconds", "of the limit", "gloo / ours"], [row(each) for each in rows])
    emit(asked.json, {"cells": rows})


if __name__ == "__main__":
    main()
