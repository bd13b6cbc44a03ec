"""Step time of `Strategy()` over DistributedDataParallel's: the same model, optimiser and batches
in the same processes.

    python -m benchmarks.step_time_vs_ddp --json benchmarks/results/step_time_vs_ddp.json

Two workers of one thread each train two copies of a GPT by AdamW with clipping, one step in turn: A
B, B A, A B, … A barrier stands before each step, the slowest rank's time counts, and a ratio is
taken within each pair, so what else the machine does meets both sides (it widens the interval; the
script says how much there was). Where the allocator happens to put a copy is worth 1 to 2 % for as
long as its process lives, so there are several launches, which build A or B first in turn, and the
interval is taken over launches, then over pairs within them. DDP is taken as it comes, and with
`gradient_as_bucket_view=True`, which spares it a copy (as thinwire does), and with thinwire as its
hook; DDP over DDP shows what the method itself reads. Four workers, two replicas of two shards,
compare FSDP2 under thinwire with native HSDP. In the end both copies must hold the same bits.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import thinwire
from benchmarks.common import CONFIG, Neighbours, batch, emit, model, parser, run_ranks, table
from thinwire.engine import Syncer
from thinwire.engine.shards import local_of

TARGET = 1.03
WARMUP = 5
PARTS = ("forward+backward", "step", "cpu of a step")
DDP, VIEWS, THIN, HOOK = "DDP", "DDP with bucket views", "thinwire", "thinwire inside DDP"
HSDP, SHARDS = "native HSDP", "thinwire over FSDP2"
COMPARED = ((THIN, DDP), (THIN, VIEWS), (HOOK, DDP), (DDP, DDP), (SHARDS, HSDP), (HSDP, HSDP))


class Side:
    """One copy of the model with its optimiser, and what averages its gradients."""

    def __init__(self, kind: str) -> None:
        self.net: nn.Module = model()
        if kind in (HSDP, SHARDS):
            mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
            for module in (*self.net.blocks, self.net):  # type: ignore[operator, misc]
                fully_shard(module, mesh=mesh if kind == HSDP else mesh["shard"])
        elif kind != THIN:
            self.net = DistributedDataParallel(self.net, gradient_as_bucket_view=kind == VIEWS)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=3e-4)
        self.sync: Syncer | None = None
        if kind in (THIN, SHARDS):
            self.sync = thinwire.attach(self.net, self.optimizer, thinwire.Strategy())
        elif isinstance(self.net, DistributedDataParallel) and kind == HOOK:
            self.sync = thinwire.ddp_hook(self.net, thinwire.Strategy(), optimizer=self.optimizer)
        self.seconds: list[tuple[float, ...]] = []

    def step(self, tokens: torch.Tensor, targets: torch.Tensor) -> tuple[float, ...]:
        """Seconds until backward has returned (the mean is in `.grad`), in all, and of all this
        process's threads on the cores."""
        begun, worked = time.perf_counter(), time.process_time()
        self.optimizer.zero_grad()
        _, loss = self.net(tokens, targets)
        loss.backward()
        landed = time.perf_counter()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        return landed - begun, time.perf_counter() - begun, time.process_time() - worked


def measure(
    rank: int, kinds: tuple[str, str], swapped: bool, pairs: int, rows: int
) -> tuple[np.ndarray, bool]:
    """Seconds (2 sides, pairs, parts) of the slowest rank, and whether both sides ended with the
    same bits."""
    sides = [Side(kind) for kind in (reversed(kinds) if swapped else kinds)]
    for pair in range(-WARMUP, pairs):
        tokens, targets = (
            batch(rows, CONFIG.context, seed=4 * pair + 2 * rank + i + 1000) for i in range(2)
        )
        for side in sides if pair % 2 else sides[::-1]:
            dist.barrier()
            taken = side.step(tokens, targets)
            if pair >= 0:
                side.seconds.append(taken)
    sides = sides[::-1] if swapped else sides
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, [side.seconds for side in sides])
    same = all(
        torch.equal(local_of(a), local_of(b))
        for a, b in zip(*(side.net.parameters() for side in sides), strict=True)
    )
    for side in sides:
        if side.sync is not None:
            side.sync.close()
    return np.max(told, axis=0), same


def ratios(logs: np.ndarray) -> dict[str, float]:
    """Of log ratios (launches, pairs): median, geometric mean, and its 95 % interval by bootstrap
    of launches and of pairs within them."""
    draw = np.random.default_rng(0)
    launches, pairs = logs.shape
    chosen = draw.integers(launches, size=(10_000, launches, 1))
    means = logs[chosen, draw.integers(pairs, size=(10_000, launches, pairs))].mean(axis=(1, 2))
    told = np.exp([np.median(logs), logs.mean(), *np.percentile(means, [2.5, 97.5])])
    return dict(zip(("median", "geometric_mean", "low_95", "high_95"), told.tolist(), strict=True))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument(
        "--launches",
        type=int,
        default=2,
        help="fresh pairs of processes for each comparison (default 2)",
    )
    arguments.add_argument(
        "--pairs", type=int, default=30, help="pairs of timed steps in each launch (default 30)"
    )
    arguments.add_argument(
        "--rows", type=int, default=8, help="rows of 64 tokens in a rank's batch (default 8)"
    )
    arguments.add_argument(
        "--only", default="", help="comparisons with this in their name (default: all)"
    )
    args = arguments.parse_args()
    rows, results = [], {}
    for kinds in COMPARED:
        name = " over ".join(kinds)
        if args.only not in name:
            continue
        world = 4 if HSDP in kinds else 2
        with Neighbours() as others:
            found = [
                run_ranks(world, measure, kinds, bool(launch % 2), args.pairs, args.rows)
                for launch in range(args.launches)
            ]
        seconds = np.stack([launch[0] for launch in found], axis=1)  # (2, launches, pairs, parts)
        results[name] = {
            "same_bits": all(launch[1] for launch in found),
            "others_cores": others.cores,
        }
        for column, part in enumerate(PARTS):
            first, second = seconds[..., column]
            logs = np.log(first / second)
            medians, got = (float(np.median(first)), float(np.median(second))), ratios(logs)
            rows.append((f"{part}, {name}", *medians, *got.values()))
            by_launch = np.exp(logs.mean(axis=1)).round(4).tolist()
            pairs_s = np.stack([first, second], axis=-1).round(4).tolist()
            results[name][part] = {
                "median_s": medians,
                **got,
                "by_launch": by_launch,
                "pairs_s": pairs_s,
            }
        results[name]["target_met"] = results[name]["step"]["high_95"] <= TARGET
    table(("", "s", "over s", "median", "geo. mean", "low 95 %", "high 95 %"), rows)
    for name, found in results.items():
        print(
            (
                f"{name}: same bits {found['same_bits']}, cores busy with other work "
                f"{found['others_cores']:.2f}, "
            ),
            end="",
        )
        print(
            f"by launch {found['step']['by_launch']}, high 95 % of the step <= {TARGET}: "
            f"{found['target_met']}"
        )
    print(
        f"{args.launches} launches of {args.pairs} pairs, 2 or 4 ranks of {args.rows} rows of "
        f"{CONFIG.context} tokens"
    )
    emit(
        args.json,
        {
            "target": TARGET,
            "launches": args.launches,
            "pairs": args.pairs,
            "rows": args.rows,
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
