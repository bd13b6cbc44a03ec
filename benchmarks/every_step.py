"""What compression costs a step, over a step without any wire: a GPT of 12.2 M parameters in the
lab.

    python -m benchmarks.every_step --hosts 2 --rate 100e6
    python -m benchmarks.every_step --hosts 4 --rate 100e6 --only top-k

Each rank, of one thread, trains one copy of the model for each strategy by fused AdamW with
clipping, in turn with a copy that sends nothing. A barrier stands before each block of steps, the
slowest rank's time counts, and ratios are taken within each turn. Two hosts have a core each on two
cores; four share them. A goal that goes by bytes takes what a rank has sent, at the link's rate.

The meter explains a part of the difference in wall clock: processor time of codecs, of the loop's
own work on buckets and of the wire, which take the core from the model, and time in waits.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import thinwire
from benchmarks.common import batch, emit, model, parser, table, with_kept
from thinwire import Strategy, recipes
from thinwire.engine import Syncer
from thinwire.how import gather, two_shot
from thinwire.lab import Lab
from thinwire.net import shapes
from thinwire.on import deltas
from thinwire.on.outer import nesterov
from thinwire.what import feedback, topk, uniform
from thinwire.when import delayed, every, staggered

PERIOD = 10
HEAD = ("strategy", "over no wire", "quartiles", "over step + bytes", "extra, ms", "cpu, ms")
HEAD += ("metered, ms", "encode", "beside", "wire's cpu", "exposed", "MB")
ROWS = 4
NONE = "no wire"
FOUR = {"lanes": 4, "slice_bytes": 1 << 20}
STRATEGIES: dict[str, tuple[Strategy, dict[str, Any]]] = {
    "top-k 8 of 512, feedback": (Strategy(what=feedback(topk(8, 512)), how=gather()), {}),
    "PowerSGD rank 4": (recipes.powersgd(4), {"bucket_bytes": 1 << 30}),
    "4 bits, feedback": (Strategy(what=feedback(uniform(4)), how=two_shot()), FOUR),
    "DiLoCo, 4 bits": (
        Strategy(every(PERIOD), uniform(4), two_shot(), deltas(nesterov(0.5, 0.8))),
        FOUR,
    ),
    "streaming DiLoCo, 4 bits": (
        Strategy(
            delayed(2, staggered(5, every(PERIOD))),
            uniform(4),
            two_shot(),
            deltas(nesterov(0.5, 0.8)),
        ),
        FOUR,
    ),
}


class Side:
    """One copy of the model, its optimiser and its strategy; without one it sends nothing."""

    def __init__(self, name: str) -> None:
        self.net = model()
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=3e-4, fused=True)
        self.sync: Syncer | None = None
        self.block = 1
        if name != NONE:
            strategy, options = STRATEGIES[name]
            self.sync = thinwire.attach(self.net, self.optimizer, strategy, **options)
            self.block = PERIOD if strategy.when.period > 1 else 1

    def step(self, rows: torch.Tensor) -> None:
        _, loss = self.net(rows[:, :-1], rows[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def metered(self) -> dict[str, float]:
        """What the meter has counted so far, in seconds, and bytes."""
        if self.sync is None:
            return {}
        report = self.sync.report()
        return {
            "sent_bytes": report.sent_bytes,
            "encode_s": sum(row.encode_s for row in report.rows),
            "beside_s": report.beside_s,
            "wire_cpu_s": sum(row.carry_s for row in report.rows) + report.transport_s,
            "exposed_s": report.exposed_s,
        }


def work(names: list[str], turns: int) -> None:
    """Run one rank, and print its figures on rank 0."""
    dist.init_process_group("gloo", timeout=timedelta(minutes=5))
    rank = dist.get_rank()
    sides = {name: Side(name) for name in (NONE, *names)}
    rows = batch(ROWS, 65, rank)
    blocks: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for turn in range(-1, turns):
        for name in list(sides) if turn % 2 else list(sides)[::-1]:
            side = sides[name]
            steps = max(2, side.block)
            dist.barrier()
            before, begun, worked = side.metered(), time.perf_counter(), time.process_time()
            for _ in range(steps):
                side.step(rows)
            taken = time.perf_counter() - begun
            cpu = time.process_time() - worked
            after = side.metered()
            figures = {name: (after[name] - before[name]) / steps for name in after}
            figures |= {"step_s": taken / steps, "cpu_s": cpu / steps}
            slowest = torch.tensor(taken / steps, dtype=torch.float64)
            dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
            figures["slowest_s"] = slowest.item()
            if turn >= 0:
                blocks[name].append(figures)
    if rank == 0:
        print(json.dumps(blocks))
    for side in sides.values():
        if side.sync is not None:
            side.sync.close()
    dist.barrier()
    dist.destroy_process_group()


def measured(
    names: list[str], hosts: int, rate: float, turns: int
) -> dict[str, list[dict[str, float]]]:
    """Return rank 0's figures, by strategy and turn, from one lab."""
    lines: list[str] = []
    argv = [sys.executable, "-m", "benchmarks.every_step", "--work", "--turns", str(turns)]
    argv += ["--names", json.dumps(names)]

    def on_line(host: str, line: str, complaint: bool) -> None:
        if host == "host0" and not complaint and line.startswith("{"):
            lines.append(line)
        elif complaint:
            print(host, line, file=sys.stderr)

    with Lab(shapes.uniform(hosts, rate)) as lab:
        ran = lab.run(argv, timeout=1500, on_line=on_line)
    if ran.worst or not lines:
        raise RuntimeError(f"a rank failed: {ran.codes}")
    return json.loads(lines[-1])  # type: ignore[no-any-return]


def summed(name: str, hosts: int, rate: float, blocks: dict[str, Any]) -> dict[str, Any]:
    """Return one strategy's figures: medians over turns, and quartiles of the ratio."""
    alone, own = blocks[NONE], blocks[name]
    ratios = [a["slowest_s"] / b["slowest_s"] for a, b in zip(own, alone, strict=True)]
    low, mid, high = statistics.quantiles(ratios, n=4)
    middle = {
        key: statistics.median(each[key] for each in own) for key in own[0] if key != "slowest_s"
    }
    extra = [a["step_s"] - b["step_s"] for a, b in zip(own, alone, strict=True)]
    explained = [
        each["encode_s"] + each["beside_s"] + each["wire_cpu_s"] + each["exposed_s"] for each in own
    ]
    base = statistics.median(each["slowest_s"] for each in alone)
    return {
        "hosts": hosts,
        "rate": rate,
        "strategy": name,
        "no_wire_s": base,
        "over_no_wire": mid,
        "quartiles": [low, high],
        "over_step_and_bytes": mid * base / (base + 8 * middle["sent_bytes"] / rate),
        "over_the_longer": mid * base / max(base, 8 * middle["sent_bytes"] / rate),
        "extra_s": statistics.median(extra),
        "extra_cpu_s": statistics.median(
            a["cpu_s"] - b["cpu_s"] for a, b in zip(own, alone, strict=True)
        ),
        "explained_s": statistics.median(explained),
        **middle,
    }


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--hosts", type=int, default=2)
    made.add_argument("--rate", type=float, default=100e6, help="bits a second of each host's link")
    made.add_argument("--turns", type=int, default=8)
    made.add_argument("--only", default="", help="strategies whose name holds this")
    made.add_argument("--work", action="store_true", help="be one rank; the program does it itself")
    made.add_argument("--names", default="[]", help="what that rank trains")
    options = made.parse_args()
    torch.set_num_threads(1)
    if options.work:
        work(json.loads(options.names), options.turns)
        return
    names = [name for name in STRATEGIES if options.only in name]
    blocks = measured(names, options.hosts, options.rate, options.turns)
    told = [summed(name, options.hosts, options.rate, blocks) for name in names]
    table(
        HEAD,
        [
            (
                each["strategy"],
                f"{each['over_no_wire']:.3f}",
                "{:.3f} to {:.3f}".format(*each["quartiles"]),
                f"{each['over_step_and_bytes']:.3f}",
                *(
                    f"{1e3 * each[key]:.0f}"
                    for key in (
                        "extra_s",
                        "extra_cpu_s",
                        "explained_s",
                        "encode_s",
                        "beside_s",
                        "wire_cpu_s",
                    )
                ),
                f"{1e3 * each['exposed_s']:.0f}",
                f"{each['sent_bytes'] / 1e6:.2f}",
            )
            for each in told
        ],
    )
    kept: Path | None = options.json
    emit(kept, {"rows": with_kept(kept, told, "hosts", "rate", "strategy")})


if __name__ == "__main__":
    main()
