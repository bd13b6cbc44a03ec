"""Steps of a model of thousands of small tensors, beside DDP: part of `real_sizes`.

Two workers of one thread each hold a copy of one model for each side. All sides step in turn on
the same batch, in an order that rotates; a barrier stands before each step, the slowest rank's time
counts, and ratios are taken within a round. In the end dense copies hold the same bits as DDP's.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import thinwire
from benchmarks.common import Neighbours, run_ranks
from thinwire.engine import Syncer
from thinwire.how import gather
from thinwire.what import feedback, uniform

TENSORS = 5_000
WARMUP = 4
DDP, VIEWS, DENSE, FOUR = "DDP", "DDP, bucket views", "thinwire", "thinwire, feedback, 4 bits"
SIDES = (DDP, VIEWS, DENSE, FOUR)


class Adapters(nn.Module):
    """Pairs of LoRA matrices, of ranks 2 to 31, one behind the other: the tensors of many layers or
    experts, without the layers."""

    def __init__(self, tensors: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        ranks = [2 + 7 * i % 30 for i in range(tensors // 2)]
        self.down = nn.ParameterList([torch.randn(rank, 32) * 0.1 for rank in ranks])
        self.up = nn.ParameterList([torch.randn(32, rank) * 0.1 for rank in ranks])

    def forward(self, x: Tensor) -> Tensor:
        for down, up in zip(self.down, self.up, strict=True):
            x = x + 0.01 * (x @ down.T) @ up.T
        return x.square().mean()


class Scales(nn.Module):
    """Vectors that are summed: as little work a tensor as autograd has."""

    def __init__(self, tensors: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vectors = nn.ParameterList(
            [torch.randn(64 + 37 * i % 937) * 0.1 for i in range(tensors)]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([vector.sum() for vector in self.vectors]).sum() * x.mean()


MODELS = {"LoRA pairs": Adapters, "vectors": Scales}


class Side:
    """One copy of a model with its optimiser, and what averages its gradients."""

    def __init__(self, kind: str, make: type[nn.Module]) -> None:
        self.net: nn.Module = make(TENSORS)  # type: ignore[call-arg]
        if kind in (DDP, VIEWS):
            self.net = DistributedDataParallel(self.net, gradient_as_bucket_view=kind == VIEWS)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-3, fused=True)
        self.sync: Syncer | None = None
        self.attach_s = 0.0
        if kind in (DENSE, FOUR):
            strategy = thinwire.Strategy()
            if kind == FOUR:
                strategy = thinwire.Strategy(what=feedback(uniform(4)), how=gather())
            dist.barrier()
            begun = time.perf_counter()
            self.sync = thinwire.attach(self.net, self.optimizer, strategy)
            self.attach_s = time.perf_counter() - begun

    def step(self, x: Tensor) -> tuple[float, float]:
        """Take a step; return its seconds, and those of all threads of this process."""
        begun, worked = time.perf_counter(), time.process_time()
        self.optimizer.zero_grad()
        self.net(x).backward()
        self.optimizer.step()
        return time.perf_counter() - begun, time.process_time() - worked


def many(rank: int, name: str, rounds: int) -> tuple[np.ndarray, dict[str, float], bool]:
    """Return seconds (rounds, sides, wall and processor) of the slowest rank, those of attach, and
    whether dense ended with DDP's bits."""
    sides = {kind: Side(kind, MODELS[name]) for kind in SIDES}
    seconds = np.zeros((rounds, len(SIDES), 2))
    for number in range(-WARMUP, rounds):
        generator = torch.Generator().manual_seed(2 * (number + WARMUP) + rank)
        x = torch.randn(8, 32, generator=generator)
        for turn in range(len(SIDES)):
            at = (turn + number) % len(SIDES)
            dist.barrier()
            taken = sides[SIDES[at]].step(x)
            if number >= 0:
                seconds[number, at] = taken
    told: list[Any] = [None] * dist.get_world_size()
    attached = {kind: side.attach_s for kind, side in sides.items() if side.sync is not None}
    dist.all_gather_object(told, (seconds, attached))
    same = all(
        torch.equal(a, b)
        for a, b in zip(sides[DDP].net.parameters(), sides[DENSE].net.parameters(), strict=True)
    )
    for side in sides.values():
        if side.sync is not None:
            side.sync.close()
    slowest = {kind: max(each[1][kind] for each in told) for kind in attached}
    return np.max([each[0] for each in told], axis=0), slowest, same


def quartiles(values: np.ndarray) -> list[float]:
    """Return the median, and the quartiles beside it."""
    return [round(float(each), 4) for each in np.percentile(values, [50, 25, 75])]


def measure(rounds: int) -> tuple[list[tuple[Any, ...]], dict[str, Any]]:
    """Return rows for a table, and the figures."""
    rows, results = [], {}
    for name in MODELS:
        with Neighbours() as others:
            seconds, attached, same = run_ranks(2, many, name, rounds)
        found: dict[str, Any] = {"same_bits": same, "others_cores": round(others.cores, 2)}
        for at, kind in enumerate(SIDES):
            ratio = quartiles(seconds[:, at, 0] / seconds[:, 0, 0])
            cpu = quartiles(seconds[:, at, 1] / seconds[:, 0, 1])
            found[kind] = {
                "step_s": quartiles(seconds[:, at, 0]),
                "over_ddp": ratio,
                "processor_s": quartiles(seconds[:, at, 1]),
                "processor_over_ddp": cpu,
            }
            if kind in attached:
                found[kind]["attach_s"] = round(attached[kind], 3)
            rows.append(
                (
                    f"{name}, {kind}",
                    found[kind]["step_s"][0],
                    *ratio,
                    *cpu,
                    attached.get(kind, 0.0),
                )
            )
        results[name] = found
    return rows, {"tensors": TENSORS, "rounds": rounds, **results}
