"""Ranks of a quorum on threads with one store, each with a minimum of its own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import thinwire
from tests.engine.models import noise
from tests.threads import on_threads
from thinwire import Strategy
from thinwire.core import Codec, Outer
from thinwire.how import gather
from thinwire.on import deltas, sgd
from thinwire.quorum import QuorumSyncer
from thinwire.when import every

OWN = [noise(7, key=30 + rank) for rank in range(4)]


STARTS = [noise(3, key=1), noise(4, key=2)]


RATE, H = 0.1, 3


PLAIN = Strategy(every(H), how=gather(), on=deltas(sgd(1.0)))


WEIGHTS = [1.0, 3.0, 2.0, 1.0]


def strategy(what: Codec = PLAIN.what, outer: Outer = PLAIN.on.outer) -> Strategy:  # type: ignore[attr-defined]
    return Strategy(every(H), what, gather(), deltas(outer))


class Rank:
    """A rank that descends to its own minimum."""

    def __init__(
        self, store: Any, rank: int, given: Strategy = PLAIN, seed: int = 0, **options: Any
    ) -> None:
        self.rank = rank
        self.model = nn.ParameterList(nn.Parameter(start + seed) for start in STARTS)
        self.optimizer = torch.optim.SGD(self.model.parameters(), RATE)
        settings = {
            "world": 3,
            "quorum": 2,
            "grace_s": 30.0,
            "timeout": timedelta(seconds=150),
            "bucket_bytes": 24,
        } | options
        self.sync: QuorumSyncer = thinwire.join(
            self.model, self.optimizer, given, store=store, rank=rank, **settings
        )

    @property
    def flat(self) -> Tensor:
        return torch.cat([param.detach().reshape(-1) for param in self.model])

    def step(self) -> None:
        weights = torch.cat([param.reshape(-1) for param in self.model])
        (0.5 * (weights - OWN[self.rank]).square().sum()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def round(self) -> Tensor:
        """A round's steps; where the rank is then."""
        for _ in range(H):
            self.step()
        return self.flat


def moved(anchor: Tensor, rank: int) -> Tensor:
    """anchor - w after a round's steps."""
    return (1 - (1 - RATE) ** H) * (anchor - OWN[rank])


def ran(results: dict[int, Any]) -> list[Any]:
    for result in results.values():
        if isinstance(result, BaseException):
            raise result
    return [results[rank] for rank in sorted(results)]


def together(world: int, work: Callable[[int, Any], Any]) -> list[Any]:
    """`work(rank, store)` on threads with one store."""
    store = dist.HashStore()
    return ran(on_threads(world, lambda driver: work(driver.rank, store)))


START = torch.cat(STARTS)
