"""The syncers at work in a process, and the one hook that looks at its optimisers."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from thinwire import Strategy
from thinwire.engine import living
from thinwire.on import deltas, gradients


class _Watch:
    def __init__(self, model: nn.Module, strategy: Strategy, ranks: tuple[int, ...] = ()) -> None:
        self.trained = {id(param): param for param in model.parameters()}
        driver = SimpleNamespace(global_ranks=ranks, world=2)
        self.session = SimpleNamespace(strategy=strategy, driver=driver)
        self.clock = SimpleNamespace(step=3)
        self.seen: list[Any] = []

    def stepping(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self.seen.append(optimizer)


@pytest.fixture
def model() -> nn.Module:
    return nn.Linear(2, 2)


@pytest.fixture
def watch(model: nn.Module) -> Iterator[Any]:
    made = _Watch(model, Strategy(on=gradients()))
    living.add(made)  # type: ignore[arg-type]
    yield made
    living.remove(made)  # type: ignore[arg-type]


def test_every_optimizer_is_seen_until_the_syncer_is_closed(model: nn.Module, watch: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.step()
    assert watch.seen == [optimizer]
    living.remove(watch)
    optimizer.step()
    assert watch.seen == [optimizer]


def test_the_holder_of_a_parameter_is_found(model: nn.Module, watch: Any) -> None:
    assert living.holders(model.weight) == [watch]  # type: ignore[arg-type]
    assert living.holders(nn.Linear(2, 2).weight) == []


def test_a_model_is_synchronised_once_on_each_clock(model: nn.Module, watch: Any) -> None:
    (refused,) = living.conflicts(model, Strategy(on=gradients()), (), 2)
    assert "'weight' is synchronised already" in refused
    assert "at step 3" in refused
    assert living.conflicts(nn.Linear(2, 2), Strategy(on=gradients()), (), 2) == []


def test_deltas_among_other_ranks_are_a_second_level(model: nn.Module, watch: Any) -> None:
    outer = Strategy(on=deltas())
    assert living.conflicts(model, outer, (0, 4), 2) == []
    assert living.conflicts(model, outer, (), 2) != []
