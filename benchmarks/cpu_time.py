"""Processor time that a strategy adds to a step, and how much of it the meter accounts for.

    python -m benchmarks.cpu_time --json benchmarks/results/cpu_time.json

Two workers of one thread each train two copies of a GPT in turn: one with Thinwire attached, one
bare, which sends nothing. What all threads of a process spend on the cores (`time.process_time`) in
a step of the one, less that of the other in the same pair, is what the strategy adds. The meter's
account of these steps is the difference of two reports: encode, beside encode, wire. A barrier
stands before each step. `cost` is what the account itself takes, from the number of its clock
readings and the time of one.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import thinwire
from benchmarks.common import CONFIG, Neighbours, batch, emit, model, parser, run_ranks, table
from thinwire import Strategy, recipes
from thinwire.engine.observe.meter import SAMPLED, Report
from thinwire.how import gather, two_shot
from thinwire.what import feedback, topk, uniform

LEAST, MOST = 0.9, 1.1  # of what is added, that the account is to show
COST = 0.003  # of a step, that the account may take
WARMUP = 3
STRATEGIES = {
    "dense": Strategy(),
    "top 1 % feedback, gather": Strategy(what=feedback(topk(0.01)), how=gather()),
    "4-bit feedback, two_shot": Strategy(what=feedback(uniform(4)), how=two_shot()),
    "1-bit feedback, two_shot": recipes.ef_signsgd(),
    "PowerSGD, rank 4": recipes.powersgd(rank=4),
}
PARTS = ("encode", "beside", "wire")


def account(report: Report) -> np.ndarray:
    """Seconds of encode, beside encode, and the wire."""
    wire = sum(row.carry_s for row in report.rows) + report.transport_s
    return np.array([sum(row.encode_s for row in report.rows), report.beside_s, wire])


class Side:
    """One copy of the model with its optimiser, with or without Thinwire."""

    def __init__(self, strategy: Strategy | None) -> None:
        self.net = model()
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-3)
        self.sync = (
            thinwire.attach(self.net, self.optimizer, strategy) if strategy is not None else None
        )

    def step(self, tokens: torch.Tensor, targets: torch.Tensor) -> float:
        """Seconds of all this process's threads on the cores."""
        begun = time.process_time()
        self.optimizer.zero_grad()
        self.net(tokens, targets)[1].backward()
        self.optimizer.step()
        return time.process_time() - begun


def measure(rank: int, name: str, pairs: int, rows: int) -> dict[str, Any]:
    """Of each rank and pair: seconds bare, seconds with Thinwire; and the account of all timed
    steps, by rank."""
    sides = (Side(None), Side(STRATEGIES[name]))
    sync = sides[1].sync
    assert sync is not None
    spent = []
    for pair in range(-WARMUP, pairs):
        tokens, targets = (
            batch(rows, CONFIG.context, seed=4 * pair + 2 * rank + i + 1000) for i in range(2)
        )
        if pair == 0:
            before = account(sync.report())
        taken = [0.0, 0.0]
        for i in (0, 1) if pair % 2 else (1, 0):
            dist.barrier()
            taken[i] = sides[i].step(tokens, targets)
        if pair >= 0:
            spent.append(taken)
    counted = (account(sync.report()) - before) / pairs
    readings = 2 * len(list(sides[1].net.parameters())) / SAMPLED + 4 * (
        2 + sum(len(bucket.slices) for bucket in sync.buckets)
    )
    told: list[Any] = [None, None]
    dist.all_gather_object(told, (spent, counted.tolist()))
    sync.close()
    return {
        "spent_s": [each[0] for each in told],
        "account_s": [each[1] for each in told],
        "readings": readings,
    }


def reading_s() -> float:
    """Seconds of one reading of a thread's clock."""
    begun = time.thread_time()
    for _ in range(10_000):
        time.thread_time()
    return (time.thread_time() - begun) / 10_000


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument(
        "--pairs", type=int, default=24, help="pairs of timed steps (default 24)"
    )
    arguments.add_argument(
        "--rows", type=int, default=8, help="rows of 64 tokens in a rank's batch (default 8)"
    )
    arguments.add_argument(
        "--only", choices=STRATEGIES, action="append", help="these strategies alone"
    )
    args = arguments.parse_args()
    rows, results, one = [], {}, reading_s()
    for name in args.only or STRATEGIES:
        with Neighbours() as others:
            found = run_ranks(2, measure, name, args.pairs, args.rows)
        spent = np.array(found["spent_s"])  # (ranks, pairs, bare and with Thinwire)
        differences = (spent[..., 1] - spent[..., 0]).ravel()
        added, error = (
            float(differences.mean()),
            float(differences.std(ddof=1) / len(differences) ** 0.5),
        )  # means, as the account is one
        bare = statistics.median(spent[..., 0].ravel().tolist())
        parts = np.array(found["account_s"]).mean(axis=0)
        shown = float(parts.sum()) / added
        cost = found["readings"] * one / bare
        results[name] = {
            "bare_s": bare,
            "added_s": added,
            "added_standard_error_s": error,
            **dict(zip((f"{part}_s" for part in PARTS), parts.tolist(), strict=True)),
            "accounted_for": shown,
            "cost": cost,
            "others_cores": others.cores,
            "target_met": LEAST <= shown <= MOST and cost < COST,
            "pairs_s": spent.round(5).tolist(),
        }
        rows.append(
            (
                name,
                1e3 * bare,
                1e3 * added,
                1e3 * error,
                *(1e3 * parts),
                shown,
                f"{cost:.4%}",
                f"{others.cores:.2f}",
            )
        )
    table(
        (
            "processor time, ms a step",
            "bare",
            "added",
            "its error",
            *PARTS,
            "accounted for",
            "meter's cost",
            "others' cores",
        ),
        rows,
    )
    print(
        f"{args.pairs} pairs, 2 ranks of {args.rows} rows of {CONFIG.context} tokens; target: "
        f"{LEAST:.0%} to {MOST:.0%} accounted for,"
    )
    print(
        f"a cost under {COST:.1%} of a bare step: "
        f"{ {name: each['target_met'] for name, each in results.items()} }"
    )
    emit(
        args.json,
        {
            "target": [LEAST, MOST, COST],
            "pairs": args.pairs,
            "rows": args.rows,
            "reading_s": one,
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
