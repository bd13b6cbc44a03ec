"""How near `auto()` comes to the line on odd links, beside gloo's all-reduce and routes by hand.

    python -m benchmarks.links --json benchmarks/results/links.json
    python -m benchmarks.links --only jitter          # one link

Four hosts of the lab sum one float32 gradient through `thinwire.attach`. A turn is a backward pass
of that one parameter, from a common start to the last rank's end; the ways take turns, so that all
meet the same minutes. line: the bytes that any all-reduce must send out of a rank, 2 (K-1)/K · m,
over the rate of its thinnest direction, as a share of the time. gloo / ours: gloo's own time over
the way's. Both are medians, with quartiles. Frames leave 0.956 of a line to payload.
halved: the rate falls to half HALVES_S after the start, and `auto()` alone trains on; its shares
are of the line before and of the line after, and each measurement in mid-run is told.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import thinwire
from benchmarks.common import Neighbours, emit, parser, table, with_kept
from thinwire import Strategy
from thinwire.lab import Lab
from thinwire.net import Change, Network, Wire, uniform
from thinwire.strategy.reading import spelled

BEGUN, LATE_S = time.perf_counter(), 8.0  # a rank begins some seconds after the lab's schedule
WORLD = 4
MB = 1_000_000
AUTO = "auto()"
HALVED, HALVES_S, HALVED_TURNS = "100 Mb/s, 10 ms, halved in mid-run", 30.0, 70
BY_HAND = (("native()", 1), ("native()", 4), ("direct()", 1), ("direct()", 4), ("ring()", 1))
LOSSY = (("native()", 1), ("native()", 8), ("direct()", 8))


@dataclass(frozen=True)
class Odd:
    """A link. values: float32 of the gradient; turns: of each way."""

    network: Network
    values: int = 2 * MB
    turns: int = 5
    by_hand: tuple[tuple[str, int], ...] = BY_HAND

    @property
    def line(self) -> float:
        """Return the bytes a second of a rank's thinnest direction, at first."""
        host = self.network.hosts[0]
        return min(rate for rate in (host.up_bits_per_s, host.down_bits_per_s) if rate) / 8


def links() -> dict[str, Odd]:
    """Return the links by name."""
    rate, lossy = 1e8, Wire(0.005, loss=0.005)
    thin = uniform(WORLD, rate)
    up = replace(thin, hosts=tuple(replace(host, up_bits_per_s=2e7) for host in thin.hosts))
    return {
        "100 Mb/s, plain": Odd(thin),
        "1 Gb/s, plain": Odd(uniform(WORLD, 1e9), values=4 * MB, turns=7),
        "100 Mb/s, 30 ms, jitter 5 ms": Odd(
            uniform(WORLD, rate, Wire(0.015, 0.0025)), values=4 * MB, turns=4
        ),
        "100 Mb/s, 10 ms, loss 0.5 %, cubic": Odd(
            uniform(WORLD, rate, lossy), turns=3, by_hand=LOSSY
        ),
        "100 Mb/s, 10 ms, loss 0.5 %, bbr": Odd(
            uniform(WORLD, rate, lossy, congestion="bbr"), turns=3, by_hand=LOSSY
        ),
        "100 Mb/s down, 20 up": Odd(up, values=MB // 2),
    }


class Way:
    """A way to sum, on this rank: a route through `attach`, or gloo's own all-reduce."""

    def __init__(self, name: str, values: int) -> None:
        self.name, self.began_s = name, 0.0
        self.grad = torch.ones(values)
        self.sync: thinwire.Sync | None = None
        if name == "gloo":
            return
        route, _, lanes = name.partition(", lanes=")
        self.model = nn.ParameterList([nn.Parameter(torch.zeros(values))])
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0)
        chosen: Any = "auto" if route == AUTO else int(lanes)
        self.sync = thinwire.attach(
            self.model,
            self.optimizer,
            Strategy(how=spelled("how", route)),
            lanes=chosen,
            slice_bytes="auto" if route == AUTO else (4 * values // chosen if chosen > 1 else None),
            check_every=None,
            timeout=timedelta(seconds=120),
        )

    def turn(self) -> float:
        """Return the seconds of a sum, from a common start to the last rank's end."""
        dist.barrier()
        begun = time.perf_counter()
        self.began_s = begun - BEGUN
        if self.sync is None:
            dist.all_reduce(self.grad.clone())
        else:
            self.model[0].mul(1.0).backward(self.grad)
        passed = torch.tensor([time.perf_counter() - begun], dtype=torch.float64)
        dist.all_reduce(passed, op=dist.ReduceOp.MAX)
        if self.sync is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        return float(passed)

    def chose(self) -> str:
        """Return what was chosen, and by what."""
        if self.sync is None:
            return ""
        report = self.sync.report()
        routes = (row.route for row in report.rows)
        return "; ".join(filter(None, (*routes, report.lane_plan, *report.remeasured)))


def ranks_of(values: int, turns: int, by_hand: list[list[Any]], alone: bool) -> dict[str, Any]:
    """Return what a rank measures within its host."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    names = (
        [AUTO]
        if alone
        else ["gloo", AUTO, *(f"{route}, lanes={lanes}" for route, lanes in by_hand)]
    )
    ways, attach_s = [], {}
    for name in names:
        begun = time.perf_counter()
        ways.append(Way(name, values))
        attach_s[name] = time.perf_counter() - begun
    seconds: dict[str, list[float]] = {name: [] for name in names}
    began_s: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(turns + 1):
        for way in ways:
            took = way.turn()
            if turn:  # the first one warms up
                seconds[way.name].append(took)
                began_s[way.name].append(way.began_s)
    found = {
        way.name: {
            "seconds": seconds[way.name],
            "began_s": began_s[way.name],
            "chose": way.chose(),
            "attach_s": attach_s[way.name],
        }
        for way in ways
    }
    for way in ways:
        if way.sync is not None:
            way.sync.close()
    dist.destroy_process_group()
    return found


def told_by_ranks(odd: Odd, alone: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what ranks in a lab of their own find, and what the lab tells of the run."""
    with tempfile.TemporaryDirectory() as scratch, Neighbours() as others, Lab(odd.network) as lab:
        file = Path(scratch) / "found.json"
        said: list[str] = []
        work = json.dumps([odd.values, odd.turns, odd.by_hand, alone])
        command = [sys.executable, "-m", "benchmarks.links", "--ranks", work, "--json", str(file)]
        done = lab.run(command, timeout=280, on_line=lambda _host, line, _bad: said.append(line))
        if done.worst:
            raise RuntimeError("\n".join(said[-20:]))
        found = json.loads(file.read_text())
    return found, {"neighbours": others.cores, "late": str(done.line)}


def measured(name: str, odd: Odd) -> list[dict[str, Any]]:
    """Return a row for each way of one link."""
    found, lab = told_by_ranks(odd, alone=False)
    gloo, rows = found["gloo"]["seconds"], []
    for way, each in found.items():
        shares = [must(odd) / odd.line / took for took in each["seconds"]]
        ratios = [other / took for other, took in zip(gloo, each["seconds"], strict=True)]
        shown = {"line": quartiles(shares), "gloo_over_ours": quartiles(ratios)}
        rows.append({"link": name, "way": way} | shown | each | lab)
    return rows


def halved() -> list[dict[str, Any]]:
    """Return rows of `auto()` on a link whose rate falls to half in mid-run: before and after."""
    change = Change(HALVES_S, up_bits_per_s=5e7, down_bits_per_s=5e7)
    network = replace(uniform(WORLD, 1e8, Wire(0.005)), changes=(change,))
    odd = Odd(network, values=MB, turns=HALVED_TURNS, by_hand=())
    found, lab = told_by_ranks(odd, alone=True)
    auto = found[AUTO]
    rows = []
    for name, line, began in ((HALVED, 1.0, 0.0), (f"{HALVED}, after it", 0.5, HALVES_S)):
        # A turn that the change falls into is of neither.
        turns = [
            took
            for took, at in zip(auto["seconds"], auto["began_s"], strict=True)
            if (at >= began if began else at + took < HALVES_S - LATE_S)
        ]
        shares = quartiles([must(odd) / odd.line / line / took for took in turns])
        row = {"link": name, "way": AUTO, "line": shares, "gloo_over_ours": [1.0] * 3}
        rows.append(row | auto | lab)
    return rows


def must(odd: Odd) -> float:
    """Return the bytes that any all-reduce sends out of a rank."""
    return 2 * (WORLD - 1) / WORLD * 4 * odd.values


def quartiles(figures: list[float]) -> list[float]:
    """Return the lower quartile, the median and the upper quartile."""
    return statistics.quantiles(figures, n=4, method="inclusive")


def row(found: dict[str, Any]) -> list[str]:
    """Return a line of the table."""
    low, middle, high = found["line"]
    below, ratio, above = found["gloo_over_ours"]
    return [
        f"{found['link']}: {found['way']}",
        f"{middle:.3f} ({low:.3f}–{high:.3f})",
        f"{ratio:.2f} ({below:.2f}–{above:.2f})",
        f"{found['attach_s']:.1f}",
        found["chose"][:160] if found["way"] == AUTO else "",
    ]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--only", default="")
    made.add_argument("--ranks", help="within a host of the lab: values, turns and ways")
    requested = made.parse_args()
    if requested.ranks:
        found = ranks_of(*json.loads(requested.ranks))
        if os.environ["RANK"] == "0":
            requested.json.write_text(json.dumps(found))
        return
    rows: list[dict[str, Any]] = []
    for name, odd in [*links().items(), (HALVED, None)]:
        if requested.only in name:
            rows += halved() if odd is None else measured(name, odd)
            emit(requested.json, {"rows": with_kept(requested.json, rows, "link", "way")})
            table(["way", "of the line", "gloo / ours", "attach s", "chose"], list(map(row, rows)))


if __name__ == "__main__":
    main()
