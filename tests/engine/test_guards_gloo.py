"""What would leave ranks unequal in silence, over gloo with 3 ranks: found by all of them, in one
run of processes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import thinwire
from tests.engine.models import mlp, train
from tests.ranks import run_ranks
from thinwire import Strategy, recipes
from thinwire.errors import ThinwireError
from thinwire.on import deltas, nesterov
from thinwire.when import every

LOCAL = Strategy(every(2), on=deltas(outer=nesterov(0.7, 0.9)))


def loads_alone(rank: int, strategy: Strategy) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(model, optimizer, strategy) as sync:
        if rank == 2:
            model.load_state_dict(mlp(seed=5).state_dict())
        train(model, optimizer, rank, range(2))
        sync.check()


def loads_alike(rank: int, strategy: Strategy) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(model, optimizer, strategy) as sync:
        model.load_state_dict(mlp(seed=5).state_dict())
        before = copy.deepcopy(model.state_dict())
        train(model, optimizer, rank, range(2))
        sync.check()
        farthest = max(
            float((model.state_dict()[name] - value).abs().max()) for name, value in before.items()
        )
        assert farthest < 0.05, f"two small steps, and a weight has moved by {farthest}"


def layer_later(rank: int, strategy: Strategy) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(model, optimizer, strategy) as sync:
        train(model, optimizer, rank, range(2))
        model.append(nn.Linear(5, 5))
        optimizer.add_param_group({"params": list(model[-1].parameters())})
        sync.check()


def attached_twice(rank: int, strategy: Strategy) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(model, optimizer, strategy):
        train(model, optimizer, rank, range(2))
        thinwire.attach(model, optimizer, strategy)


def byte_flips(rank: int, strategy: Strategy) -> None:
    """Rank 1's third landing is damaged on its way."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(model, optimizer, strategy, check_every=2) as sync:
        wait, landings = sync.flights.wait, []

        def counted_wait(landing: Any, *args: Any) -> bool:
            finite = wait(landing, *args)
            landings.append(len(landing))
            if rank == 1 and len(landings) == 3 * len(sync.buckets):
                landing[-1][1].x.view(torch.uint8)[2] ^= 0x40
            return finite

        sync.flights.wait = counted_wait  # type: ignore[method-assign]
        train(model, optimizer, rank, range(12))


CASES: list[tuple[str, Callable[[int, Strategy], None], Strategy]] = [
    (f"{work.__name__} {name}", work, strategy)
    for work in (loads_alone, loads_alike, layer_later, attached_twice, byte_flips)
    for name, strategy in (("dense", Strategy()), ("qsgd", recipes.qsgd()), ("deltas", LOCAL))
    if (work, name)
    not in (
        (loads_alone, "qsgd"),
        (layer_later, "qsgd"),
        (attached_twice, "qsgd"),
        (loads_alike, "qsgd"),
    )
]


def _all(rank: int) -> dict[str, str]:
    found = {}
    for name, work, strategy in CASES:
        try:
            work(rank, strategy)
            found[name] = ""
        except ThinwireError as error:
            found[name] = f"{type(error).__name__}: {error}"
        dist.barrier()
    return found


def test_unequal_ranks_are_found_over_gloo() -> None:
    results = run_ranks(3, _all)
    for found in results:
        for name in ("loads_alone dense", "loads_alone deltas"):
            assert (
                "DisagreementError: ranks did not begin with the same weights: ranks [2]"
                in found[name]
            ), found[name]
        for name in ("loads_alike dense", "loads_alike deltas"):
            assert found[name] == ""
        for name in ("layer_later dense", "layer_later deltas"):
            assert "rank 0: '5.weight' and 1 more joined the model after attach" in found[name]
            assert "rank 2: " in found[name]
        for name in ("attached_twice dense", "attached_twice deltas"):
            assert "synchronised already, by a syncer that has not been closed" in found[name]
        for name in ("byte_flips dense", "byte_flips qsgd", "byte_flips deltas"):
            assert "ranks [1] do not hold rank 0's bits" in found[name], found[name]
