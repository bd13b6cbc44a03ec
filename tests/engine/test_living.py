"""The syncers at work in a process, and the one hook that looks at its optimisers."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import thinwire
from tests.engine.models import mlp, sgd_of, train
from tests.threads import on_threads
from thinwire import Strategy
from thinwire.core import Driver
from thinwire.drive.local import Fabric
from thinwire.engine import living
from thinwire.errors import AttachError
from thinwire.on import deltas, gradients, nesterov
from thinwire.when import every

LOCAL = Strategy(every(2), on=deltas(outer=nesterov(0.7, 0.9)))


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


@pytest.mark.parametrize("strategy", [LOCAL, Strategy()], ids=lambda each: type(each.on).__name__)
def test_a_second_syncer_of_the_same_parameters_is_refused(strategy: Strategy) -> None:
    def work(driver: Driver) -> str:
        model = mlp()
        optimizer = sgd_of(model)
        first = thinwire.attach(model, optimizer, strategy, driver=driver)
        train(model, optimizer, driver.rank, range(2))
        with pytest.raises(AttachError) as error:
            thinwire.attach(model, optimizer, strategy, driver=driver)
        first.close()
        with thinwire.attach(model, optimizer, strategy, driver=driver):
            train(model, optimizer, driver.rank, range(2))
        return str(error.value)

    for message in on_threads(2, work).values():
        assert (
            "rank 1: '0.weight' is synchronised already, by a syncer that has not been closed"
            in message
        )
        assert f"({strategy!r}, at step 2)" in message


def test_gradients_and_deltas_among_the_same_ranks_are_refused_and_among_others_not() -> None:
    nodes = [Fabric(1), Fabric(1)]

    def work(driver: Driver) -> str:
        model = mlp()
        optimizer = sgd_of(model)
        with thinwire.attach(model, optimizer, driver=driver), pytest.raises(AttachError) as error:
            thinwire.attach(model, optimizer, LOCAL, driver=driver)
        inside = thinwire.attach(model, optimizer, driver=nodes[driver.rank].driver(0))
        with inside, thinwire.attach(model, optimizer, LOCAL, driver=driver):
            train(model, optimizer, driver.rank, range(2))
        return str(error.value)

    assert all("Two levels of periods" in message for message in on_threads(2, work).values())


def test_syncers_of_other_parameters_go_together() -> None:
    model = nn.ModuleList([mlp(), mlp(seed=1)])
    optimizers = [sgd_of(each) for each in model]
    with (
        thinwire.attach(model[0], optimizers[0], LOCAL),
        thinwire.attach(model[1], optimizers[1]) as second,
    ):
        for each, optimizer in zip(model, optimizers, strict=True):
            train(each, optimizer, 0, range(2))
        assert second.step == 2
