"""How near a route comes to the wire's limit in the lab, with gloo's own all-reduce beside it.

    # all cells; with --only 1G: only those
    python -m benchmarks.wire --json benchmarks/results/wire.json
    # routes beside their formula and the simulator
    python -m benchmarks.wire --part routes --json benchmarks/results/wire_routes.json
    # rank 0's 48 MB to 8 hosts, as attach sends them, by a chain and scattered
    python -m benchmarks.wire --part broadcast

Every rank is a host of its own behind one link, which the lab holds to its rate, frames included:
0.956 is all that payload can have of it in frames of 1500 bytes. A cell is the median of some
flights over warm connections, each from a common start to the last rank's end.
limit: the bytes that a rank (of two levels: a node, outwards) must send, in closed form, over the
link's rate, as a share of the time. plain sockets: that share for as many bytes by sockets of
Python, slot by slot, in the same run. gloo: the time of gloo's own all_reduce of the same float32
values in the same run over ours. cores: those that the ranks' processes kept busy in a flight.
outer: what the kernel counted out of the busiest node over the closed form. Of the part "routes",
formula and simulator are given the link as the ranks measured it at first, as `attach` does for
`auto()`.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist

import thinwire.how
import thinwire.what  # noqa: F401  (its members must be known before one is spelled)
from benchmarks.common import Neighbours, emit, parser, table, with_kept
from benchmarks.plain_sockets import Plain
from thinwire.core import Link, RankContext, Spec
from thinwire.core.broadcast import broadcast
from thinwire.drive.sim import simulate
from thinwire.drive.torch import TorchDriver
from thinwire.engine import probe
from thinwire.engine.observe.meter import Meter
from thinwire.how import hierarchical
from thinwire.lab import Count, Lab
from thinwire.net import LOCAL_NETWORK, Network, Transport, Wire, two_level, uniform
from thinwire.strategy.reading import spelled

TUNED = {
    "net.ipv4.tcp_slow_start_after_idle": "0",
    "net.ipv4.tcp_rmem": "4096 131072 67108864",
    "net.ipv4.tcp_wmem": "4096 131072 67108864",
}
MB = 1_000_000
WAYS = {
    "chain": LOCAL_NETWORK.between(0, 1),
    "scattered": uniform(2, 8e9, Wire(30.0)).between(0, 1),
}  # a link on which the formula takes that way


@dataclass(frozen=True)
class Cell:
    """values: float32 of each rank. They are cut in slices of `slice_bytes` of values, on `lanes`
    lanes, as `thinwire.attach` does.

    node, inner: ranks of a node, and the rate inside one. probe: measure the link first, and bind
    the route by it.
    """

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
    node: int = 1
    inner: float = 1e10
    probe: bool = False

    @property
    def plain(self) -> bool:
        """Plain sockets are beside it."""
        return not self.rtt and self.node == 1 and self.route == "two_shot()" and not self.probe

    @property
    def name(self) -> str:
        """For people."""
        rate = f"{self.rate / 1e9:g}G" if self.rate >= 1e9 else f"{self.rate / 1e6:g}M"
        far = f", {self.rtt * 1e3:g} ms, {self.congestion}" if self.rtt else ""
        world = f"K={self.world}" if self.node == 1 else f"K={self.world // self.node}x{self.node}"
        way = "" if self.route == "two_shot()" else f", {self.route}"
        return f"{rate}{far}, {world}, {self.codec}{way}, {self.values * 4 / MB:.0f} MB fp32"

    @property
    def network(self) -> Network:
        """Where it is measured."""
        wire, more = (
            Wire(latency_s=self.rtt / 2),
            {"congestion": self.congestion, "sysctl": TUNED if self.rtt else {}},
        )
        if self.node > 1:
            return two_level(
                self.world // self.node, self.node, self.inner, self.rate, wire, **more
            )
        return uniform(self.world, self.rate, wire, **more)

    @property
    def contexts(self) -> list[RankContext]:
        return [RankContext(rank, tuple(range(self.world)), 0, 0) for rank in range(self.world)]

    @property
    def spans(self) -> tuple[Spec, ...]:
        """Its slices."""
        whole = Spec((), 0, self.values, torch.float32)
        return whole.cut(
            -(-4 * self.values // self.slice_bytes),
            max(spelled("what", self.codec).traits.grain * self.world, 1),
        )


def cells() -> list[Cell]:
    """The table: no round trip to speak of; 32 MB of values beside gloo; long links."""
    whole = 1 << 30  # one slice: on a short link a single lane fills the line best
    short = [(world, rate) for rate in (1e8, 1e9) for world in (2, 4, 8)]
    made = [
        Cell(world, rate, 0.0, "identity()", 8 * MB, whole, 1, turns=3) for world, rate in short
    ]  # 32 MB of payload
    made += [replace(cell, route="native()", gloo=False) for cell in made]
    # as much; where the codec takes its time, other lanes encode meanwhile. On a slow line lanes of
    # a ring do not meet at one receiver
    lanes = {(2, 1e8): ("two_shot()", 2), (4, 1e8): ("ring()", 4), (8, 1e8): ("two_shot()", 1)}
    for world, rate in short:
        route, many = lanes.get((world, rate), ("two_shot()", 4))
        made.append(
            Cell(
                world,
                rate,
                0.0,
                "uniform(4)",
                62 * MB,
                16 * MB if many > 1 else whole,
                many,
                route,
                gloo=False,
                turns=3,
            )
        )
    made += [
        Cell(4, rate, 0.0, codec, 8 * MB, 8 * MB, 2)
        for rate in (1e8, 1e9)
        for codec in ("uniform(4)", "sign()")
    ]
    made += [
        Cell(
            4, 1e9, rtt, "identity()", 16 * MB, 16 * MB, 4, congestion=congestion, probe=True
        )  # 64 MB of payload
        for rtt in (0.05, 0.1)
        for congestion in ("bbr", "cubic")
    ]
    # two levels: what happens inside a node is hidden behind other slices' way out of it
    levels = [
        ("identity()", "hierarchical(native(), ring(), 2)", 8 * MB),
        ("uniform(4)", "hierarchical(native(), two_shot(), 2)", 4 * MB),
    ]
    made += [
        Cell(8, 1e8, 0.0, codec, 16 * MB, nbytes, 4, route, gloo=False, turns=5, node=2)
        for codec, route, nbytes in levels
    ]
    return made


def routes() -> list[Cell]:
    """Routes and codecs on four links, in one slice of 8 MB of values."""
    dense = ("native()", "gather()", "direct()", "ring()", "tree()", "halving_doubling()")
    thin = ("gather()", "two_shot()", "ring()", "tree()", "halving_doubling()")
    pairs = [("identity()", route) for route in dense] + [("uniform(4)", route) for route in thin]
    return [
        Cell(
            4, rate, rtt, codec, 2 * MB, 1 << 30, 1, route, "cubic", gloo=False, turns=3, probe=True
        )
        for rate in (1e8, 1e9)
        for rtt in (0.0, 0.05)
        for codec, route in pairs
    ]


def spread() -> list[Cell]:
    """Of 48 MB, in two flights as `attach` sends them."""
    return [
        Cell(8, rate, 0.0, "identity()", 12 * MB, 24 * MB, 1, way, gloo=False, turns=3)
        for rate in (1e8, 1e9)
        for way in WAYS
    ]


class Ranks:
    """One rank of a cell, within its host."""

    def __init__(self, cell: Cell, link: Link | None) -> None:
        self.rank, self.cell, self.plain = dist.get_rank(), cell, None
        self.driver = TorchDriver(None, cell.lanes, timedelta(seconds=120), torch.device("cpu"))
        self.link = link
        if cell.probe and link is None:
            self.link = probe.measured(self.driver, Meter(cell.world), torch.device("cpu")).between(
                0, 1, self.driver.transport
            )
        self.codec, self.ctx, self.spans = (
            spelled("what", cell.codec),
            cell.contexts[self.rank],
            cell.spans,
        )
        self.x = torch.randn(cell.values, generator=torch.Generator().manual_seed(self.rank))
        self.closed = 4.0 * cell.values
        if cell.route in WAYS:
            self.driver.prepare(())
            return
        self.route = spelled("how", cell.route).bind(cell.world, self.link)
        self.driver.prepare(self.route.groups(cell.world))
        self.states = [self.route.init(self.codec, span, self.ctx) for span in self.spans]
        self.closed = sum(
            self.route.sent_nbytes(self.codec, span, self.ctx) or 0.0 for span in self.spans
        )
        if cell.plain:
            each = torch.tensor(self.closed / 2 / (cell.world - 1))
            dist.all_reduce(
                each, op=dist.ReduceOp.MAX
            )  # spans are not quite alike, but both ends must expect as much
            self.plain = Plain(self.rank, cell.world, int(each))
            dist.barrier()
            self.plain.connect()

    def fly(self) -> None:
        """Every slice there and back."""
        handles = []
        for i, (span, state) in enumerate(zip(self.spans, self.states, strict=True)):
            flight = self.route.carry(
                self.codec, self.x[span.begin : span.end], span, state, self.ctx
            )
            handles.append(self.driver.start(flight, i % self.cell.lanes, f"slice {i}"))
        for handle in handles:
            handle.wait()
        sent = sum(handle.sent_bytes for handle in handles)
        assert abs(sent - self.closed) <= 1e-9 * sent, (
            f"the meter counts {sent} bytes, the closed form {self.closed}"
        )

    def spread(self) -> None:
        """Rank 0's values to all, a slice after the other."""
        for i, span in enumerate(self.spans):
            flat = self.x[span.begin : span.end].view(torch.uint8)
            self.driver.start(
                broadcast(flat, self.ctx, WAYS[self.cell.route]), 0, f"slice {i}"
            ).wait()

    def gloo(self) -> None:
        """gloo's own."""
        dist.all_reduce(self.x)

    def timed(self, act: Any) -> tuple[float, float]:
        """Seconds of a turn, from a common start to the last rank's end, and of processors that all
        ranks took."""
        dist.barrier()
        begun, idle = time.perf_counter(), time.process_time()
        act()
        told = torch.tensor([time.perf_counter() - begun], dtype=torch.float64)
        busy = torch.tensor([time.process_time() - idle], dtype=torch.float64)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        dist.all_reduce(busy)
        return float(told), float(busy)

    def sockets(self) -> None:
        """As many bytes, in as many messages, by plain sockets."""
        assert self.plain is not None
        self.plain.exchange()
        self.plain.exchange()

    def run(self) -> dict[str, Any]:
        """Turns of all, one after the other."""
        acts: dict[str, Any] = {"ours": self.spread if self.cell.route in WAYS else self.fly}
        acts |= ({"gloo": self.gloo} if self.cell.gloo else {}) | (
            {"plain": self.sockets} if self.plain else {}
        )
        for act in acts.values():
            self.timed(act)
        told: dict[str, Any] = {name: [] for name in acts}
        busy = 0.0
        for _ in range(self.cell.turns):
            for name, act in acts.items():
                seconds, cores = self.timed(act)
                told[name].append(seconds)
                busy += cores if name == "ours" else 0.0
        self.driver.close()
        if self.plain is not None:
            self.plain.close()
        return told | {
            "cores": busy / sum(told["ours"]),
            "closed_bytes": self.closed,
            "link": asdict(self.link) if self.link else None,
        }


def ranks_of(cells: list[Cell]) -> list[dict[str, Any]]:
    """What a rank measures within its host, cell by cell."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    told: list[dict[str, Any]] = []
    link: Link | None = None  # one for all cells of a network
    for cell in cells:
        ranks = Ranks(cell, link)
        link = ranks.link
        told.append(ranks.run())
    dist.destroy_process_group()
    return told


def measured(cells: list[Cell]) -> list[dict[str, Any]]:
    """Cells of one network, in a lab of its own."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        Neighbours() as neighbours,
        Lab(cells[0].network) as lab,
    ):
        file = Path(scratch) / "told.json"
        heard: list[str] = []
        command = [
            sys.executable,
            "-m",
            "benchmarks.wire",
            "--ranks",
            json.dumps([asdict(cell) for cell in cells]),
            "--json",
            str(file),
        ]
        done = lab.run(command, timeout=600, on_line=lambda _host, line, _bad: heard.append(line))
        if done.worst:
            raise RuntimeError("\n".join(heard[-20:]))
        told = json.loads(file.read_text())
        counts = done.counts
    return [
        _figures(cell, each, counts) | {"neighbours": neighbours.cores}
        for cell, each in zip(cells, told, strict=True)
    ]


def _figures(cell: Cell, told: dict[str, Any], counts: dict[str, Count]) -> dict[str, Any]:
    """A cell's line: medians, and what they are a share of."""
    ours, must = statistics.median(told["ours"]), told["closed_bytes"]
    beside: dict[str, Any] = {}
    if cell.gloo:
        beside = {
            "gloo_s": statistics.median(told["gloo"]),
            "gloo_over_ours": statistics.median(told["gloo"]) / ours,
        }
    if cell.plain:
        beside["plain_limit"] = 8 * must / cell.rate / statistics.median(told["plain"])
    if cell.node > 1:
        route, codec = cast(hierarchical, spelled("how", cell.route)), spelled("what", cell.codec)
        outer = [
            sum(route.outer_nbytes(codec, span, ctx) or 0.0 for span in cell.spans)
            for ctx in cell.contexts
        ]
        must = max(
            sum(outer[first : first + cell.node]) for first in range(0, cell.world, cell.node)
        )
        counted = max(
            counts[f"node{node}-core"].sent_bytes for node in range(cell.world // cell.node)
        )
        beside = {
            "outer_bytes_a_node": must,
            "outer_counted_over_closed": counted / (must * (cell.turns + 1)),
        }
    shown = {
        "name": cell.name,
        **asdict(cell),
        "ours_s": ours,
        "limit": 8 * must / cell.rate / ours,
    }
    return (
        shown
        | beside
        | {
            "cores": told["cores"],
            "link": told["link"],
            "closed_bytes": told["closed_bytes"],
            "turns_s": told["ours"],
        }
    )


def reckoned(told: dict[str, Any]) -> dict[str, Any]:
    """By the formula, and by the simulator, of a cell in one slice that was measured."""
    cell = Cell(**{each.name: told[each.name] for each in fields(Cell)})
    link = Link(**told["link"])
    network = uniform(
        cell.world,
        8 * link.rate_bytes_per_s,
        Wire(link.latency_s),
        message_s=link.message_s,
    )
    transport = Transport(link.window_bytes, link.waits)
    route, codec, (span,) = (
        spelled("how", cell.route).bind(cell.world, link),
        spelled("what", cell.codec),
        cell.spans,
    )
    seconds = max(route.seconds(codec, span, ctx, link) for ctx in cell.contexts)
    x = torch.zeros(span.numel)
    flights = {
        ctx.rank: route.carry(codec, x.clone(), span, route.init(codec, span, ctx), ctx)
        for ctx in cell.contexts
    }
    return told | {
        "formula_s": seconds,
        "simulated_s": simulate(flights, network, transport).seconds,
    }


def row(told: dict[str, Any]) -> list[str]:
    """A line of the table."""
    ratio = f"{told['gloo_over_ours']:.2f}" if "gloo_over_ours" in told else "–"
    outer = (
        f"{told['outer_counted_over_closed']:.4f}" if "outer_counted_over_closed" in told else "–"
    )
    plain = f"{told['plain_limit']:.3f}" if "plain_limit" in told else "–"
    return [
        told["name"],
        f"{told['ours_s']:.3f}",
        f"{told['limit']:.3f}",
        plain,
        ratio,
        f"{told['cores']:.2f}",
        outer,
    ]


def beside(told: dict[str, Any]) -> list[str]:
    """A line of the table of routes."""
    seconds = [told["formula_s"], told["simulated_s"], told["ours_s"]]
    return [
        told["name"],
        *(f"{each:.3f}" for each in seconds),
        f"{told['ours_s'] / told['simulated_s']:.2f}",
        f"{told['cores']:.2f}",
    ]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--part", choices=("cells", "routes", "broadcast"), default="cells")
    made.add_argument("--only", default="")
    made.add_argument("--ranks", help="within a host of the lab: the cells")
    made.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of every cell, to try: lanes=4, slice_bytes=…",
    )
    asked = made.parse_args()
    if asked.ranks:
        told = ranks_of([Cell(**each) for each in json.loads(asked.ranks)])
        if os.environ["RANK"] == "0":
            asked.json.write_text(json.dumps(told))
        return
    settings: dict[str, Any] = {
        key: value if key in ("codec", "route", "congestion") else int(value)
        for key, _, value in (each.partition("=") for each in asked.set)
    }
    parts = {"cells": cells, "routes": routes, "broadcast": spread}
    chosen = [replace(cell, **settings) for cell in parts[asked.part]() if asked.only in cell.name]
    rows: list[dict[str, Any]] = []
    if asked.part == "routes":
        for _, alike in groupby(chosen, lambda cell: (cell.rate, cell.rtt)):
            rows += [reckoned(each) for each in measured(list(alike))]
        table(
            ["cell", "formula", "simulator", "lab", "lab / simulator", "cores"],
            [beside(each) for each in rows],
        )
    else:
        for cell in chosen:
            rows += measured([cell])
            print(*row(rows[-1]), sep="  ", flush=True)
            emit(asked.json, {"rows": with_kept(asked.json, rows, "name")})
        print()
        table(
            [
                "cell",
                "seconds",
                "of the limit",
                "plain sockets",
                "gloo / ours",
                "cores",
                "outer, counted",
            ],
            [row(each) for each in rows],
        )
    emit(asked.json, {"rows": with_kept(asked.json, rows, "name")})


if __name__ == "__main__":
    main()
