"""Step time of `Strategy()` over DistributedDataParallel's: the same model, optimiser and batches in the same processes.

    python -m benchmarks.step_time_vs_ddp --json benchmarks/results/step_time_vs_ddp.json

Two workers of one thread each train two copies of a GPT by AdamW with clipping, one step in turn: A B, B A, A B, …
A barrier stands before each step, the slowest rank's time counts, and a ratio is taken within each pair, so what else the machine does
meets both sides (it widens the interval; the script says how much there was). CPU seconds, of all threads of a worker, tell the work apart
from the waiting. DDP is taken as it comes, and once more with `gradient_as_bucket_view=True`, which spares it a copy (as thinwire does).
At the end both copies must hold the same bits.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import thinwire
from benchmarks.common import CONFIG, Neighbours, batch, emit, model, parser, run_ranks, table

TARGET = 1.03
WARMUP = 5
PARTS = ("forward+backward", "step", "cpu of a step")
BASELINES: dict[str, dict[str, bool]] = {"DDP": {}, "DDP, bucket views": {"gradient_as_bucket_view": True}}


def train_step(net: nn.Module, optimizer: torch.optim.Optimizer, tokens: torch.Tensor, targets: torch.Tensor) -> tuple[float, ...]:
    """One step; seconds until backward has returned (the mean is in `.grad`), in all, and of this process's threads on the cores."""
    begun, worked = time.perf_counter(), time.process_time()
    optimizer.zero_grad()
    _, loss = net(tokens, targets)
    loss.backward()
    landed = time.perf_counter()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    return landed - begun, time.perf_counter() - begun, time.process_time() - worked


def measure(rank: int, options: dict[str, bool], pairs: int, rows: int) -> dict[str, Any]:
    """Seconds of every pair: for each side an array (pairs, 3), one column for each of `PARTS`, of the slowest rank."""
    plain, other = model(), model()
    nets = {"thinwire": plain, "ddp": DistributedDataParallel(copy.deepcopy(other), **options)}
    optimizers = {side: torch.optim.AdamW(net.parameters(), lr=3e-4) for side, net in nets.items()}
    sync = thinwire.attach(plain, optimizers["thinwire"], thinwire.Strategy())
    seconds: dict[str, list[tuple[float, ...]]] = {side: [] for side in nets}
    for pair in range(-WARMUP, pairs):
        tokens, targets = (batch(rows, CONFIG.context, seed=4 * pair + 2 * rank + i + 1000) for i in range(2))
        for side in ("thinwire", "ddp") if pair % 2 else ("ddp", "thinwire"):
            dist.barrier()
            taken = train_step(nets[side], optimizers[side], tokens, targets)
            if pair >= 0:
                seconds[side].append(taken)
    same = all(torch.equal(a, b) for a, b in zip(nets["thinwire"].parameters(), nets["ddp"].parameters(), strict=True))
    exposed = sync.report().exposed_s / (pairs + WARMUP)
    sync.close()
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, seconds)
    slowest = {side: np.max([other[side] for other in told], axis=0) for side in nets}
    return {"seconds": slowest, "same_bits": same, "exposed_s": exposed, "params": sum(p.numel() for p in plain.parameters())}


def ratios(thin: np.ndarray, ddp: np.ndarray) -> dict[str, float]:
    """Pair by pair: median, geometric mean, and the ends of the mean's 95 % interval by bootstrap (the 2.5th and 97.5th percentile)."""
    logs = np.log(thin / ddp)
    means = np.random.default_rng(0).choice(logs, (10_000, len(logs))).mean(axis=1)
    told = np.exp([np.median(logs), logs.mean(), *np.percentile(means, [2.5, 97.5])])
    return dict(zip(("median", "geometric_mean", "low_95", "high_95"), told.tolist(), strict=True))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--pairs", type=int, default=60, help="pairs of timed steps with each baseline, at least 30 (default 60)")
    arguments.add_argument("--rows", type=int, default=8, help="rows of 64 tokens in a rank's batch (default 8)")
    args = arguments.parse_args()
    rows, results, params = [], {}, 0
    for name, options in BASELINES.items():
        with Neighbours() as others:
            found = run_ranks(2, measure, options, args.pairs, args.rows)
        thin, ddp, params = found["seconds"]["thinwire"], found["seconds"]["ddp"], found["params"]
        results[name] = {"same_bits": found["same_bits"], "exposed_s": found["exposed_s"], "others_cores": others.cores}
        for column, part in enumerate(PARTS):
            got = ratios(thin[:, column], ddp[:, column])
            medians = float(np.median(ddp[:, column])), float(np.median(thin[:, column]))
            pairs = [[round(float(t), 5), round(float(d), 5)] for t, d in zip(thin[:, column], ddp[:, column], strict=True)]
            results[name][part] = {"ddp_median_s": medians[0], "thinwire_median_s": medians[1], **got, "pairs_thinwire_ddp_s": pairs}
            rows.append((f"{part} / {name}", *medians, *got.values()))
        results[name]["target_met"] = results[name]["step"]["high_95"] <= TARGET
    table(("thinwire over", "DDP s", "thinwire s", "median", "geo. mean", "low 95 %", "high 95 %"), rows)
    for name, found in results.items():
        told = f"same bits at the end: {found['same_bits']}; cores busy with other work: {found['others_cores']:.2f}"
        print(f"{name}: {told}; target, high 95 % of the step <= {TARGET}: {found['target_met']}")
    print(f"{args.pairs} pairs, {params / 1e6:.1f} M parameters, 2 ranks of {args.rows} rows")
    emit(args.json, {"target": TARGET, "pairs": args.pairs, "parameters": params, "rows": args.rows, "ranks": 2, "results": results})


if __name__ == "__main__":
    main()
