"""What a third review found, each as it was reproduced."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import thinwire
from tests.engine.models import mlp, train, weights_of
from tests.engine.test_second_review import BUILDING, built
from tests.ranks import run_ranks
from tests.threads import on_threads
from thinwire import Strategy
from thinwire.core import Driver
from thinwire.drive.torch import _next_generation
from thinwire.errors import AttachError, FlightError
from thinwire.how import checked, direct, gossip, two_shot
from thinwire.on import deltas, nesterov, parameters
from thinwire.when import delayed, every, staggered, warmup

EAGER = Strategy(delayed(2, every(4)), on=deltas(nesterov(0.5, 0.8), eager=True))


@pytest.mark.parametrize("slice_bytes", [None, 64])
def test_an_eager_flight_in_the_air_lands_on_other_slices(slice_bytes: int | None) -> None:
    """What a rank has run ahead by is its bucket's, however the bucket is cut into slices."""

    def work(driver: Driver) -> tuple[Tensor, Tensor]:
        model, optimizer, sync = built(EAGER, driver)
        train(
            model, optimizer, driver.rank, range(5)
        )  # launched at the fourth, and lands at the sixth
        state, own = (
            sync.state_dict(),
            {name: value.clone() for name, value in model.state_dict().items()},
        )
        assert any(key.startswith("all|air/") for key in state)
        train(model, optimizer, driver.rank, range(5, 12))
        unbroken = weights_of(model)
        sync.close()
        model, optimizer, sync = built(EAGER, driver, slice_bytes=slice_bytes)
        with BUILDING:
            model.load_state_dict(own)
        sync.load_state_dict(state)
        train(model, optimizer, driver.rank, range(5, 12))
        resumed = weights_of(model)
        sync.close()
        return unbroken, resumed

    for rank, found in on_threads(2, work).items():
        assert not isinstance(found, BaseException), found
        assert torch.equal(*found), rank


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(6), nn.Linear(6, 2)


def test_gossip_broadcasts_no_buffers() -> None:
    def work(driver: Driver, **settings: object) -> None:
        model = Normed()
        given = Strategy(how=gossip(), on=parameters())
        thinwire.attach(
            model, torch.optim.SGD(model.parameters(), 0.1), given, driver=driver, **settings
        ).close()  # type: ignore[arg-type]

    for error in on_threads(2, work).values():
        assert isinstance(error, AttachError)
        assert "'norm.running_mean'" in str(error)
        assert "take buffers='local'" in str(error)
    assert on_threads(2, lambda driver: work(driver, buffers="local")) == {0: None, 1: None}


def test_an_attach_that_failed_leaves_no_hooks() -> None:
    """They would put flights on lanes whose threads have ended."""

    def work(driver: Driver) -> tuple[nn.Module, torch.optim.Optimizer]:
        with BUILDING:
            model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with pytest.raises(AttachError, match="weight"):
            thinwire.attach(model, optimizer, driver=driver, weight=-1.0)
        return model, optimizer

    for found in on_threads(2, work).values():
        assert not isinstance(found, BaseException), found
        model, optimizer = found
        assert not any(param._post_accumulate_grad_hooks for param in model.parameters())
        assert not optimizer._optimizer_step_pre_hooks


def _after_close(rank: int) -> list[str]:
    model, said = mlp(), []
    with thinwire.attach(
        model, torch.optim.SGD(model.parameters(), 0.1), timeout=timedelta(seconds=20)
    ) as sync:
        train(model, sync.optimizer, rank, range(1))
    for ask in (sync.check, lambda: sync.all_gather(b"", "late"), lambda: sync.weigh(1.0)):
        with pytest.raises(FlightError) as error:
            ask()
        said.append(str(error.value))
    return said


def test_nothing_waits_for_what_is_asked_after_close() -> None:
    for said in run_ranks(2, _after_close, timeout=60):
        assert all("the syncer is closed" in each for each in said)


def test_fragments_of_parameters_are_never_equal_all_at_once() -> None:
    """`thinwire train` asks before it checks at the end of a run."""
    assert not Strategy(staggered(2, every(4)), on=parameters()).compares
    assert Strategy(staggered(2, every(4)), on=deltas()).compares
    assert Strategy(every(4), on=parameters()).compares


def test_weights_of_attach_are_settings_and_those_of_weigh_are_state() -> None:
    def work(driver: Driver) -> list[list[float]]:
        held = []
        for weighed in (None, [1.0, 4.0][driver.rank]):
            _, _, sync = built(Strategy(), driver, weight=1.0)
            if weighed:
                sync.weigh(weighed)
            state = sync.state_dict()
            sync.close()
            _, _, sync = built(Strategy(), driver, weight=[1.0, 3.0][driver.rank])
            sync.load_state_dict(state)
            held.append(list(sync.weights.shares))
            sync.close()
        return held

    with pytest.warns(UserWarning, match=r"goes on by \[0.25, 0.75\]"):
        assert on_threads(2, work) == {rank: [[0.25, 0.75], [0.2, 0.8]] for rank in range(2)}


def test_local_buffers_are_in_the_state_on_gradients_too() -> None:
    def work(driver: Driver) -> tuple[Tensor, Tensor]:
        model = Normed()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with thinwire.attach(model, optimizer, driver=driver, buffers="local") as sync:
            model.out(model.norm(torch.full((4, 6), driver.rank + 1.0))).sum().backward()
            optimizer.step()
            state, seen = sync.state_dict(), model.norm.running_mean.clone()
        model.norm.running_mean.zero_()
        with thinwire.attach(model, optimizer, driver=driver, buffers="local") as sync:
            sync.load_state_dict(state)
            return seen, model.norm.running_mean.clone()

    found = on_threads(2, work)
    for each in found.values():
        assert torch.equal(*each)
    assert not torch.equal(found[0][0], found[1][0])


class Fails(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, *__: Tensor) -> Tensor:
        raise MemoryError("no room")


def test_a_step_is_not_skipped_within_a_backward_pass_that_failed() -> None:
    first, last = nn.Linear(2, 2), nn.Linear(2, 2)
    sync = thinwire.attach(
        nn.Sequential(first, last), torch.optim.SGD([*first.parameters(), *last.parameters()], 0.1)
    )
    with pytest.raises(MemoryError):
        last(Fails.apply(first(torch.ones(1, 2)))).sum().backward()
    with pytest.raises(AttachError, match="failed half-way"):
        sync.skip_step()


def test_drivers_are_counted_by_the_ranks_among_which_they_are() -> None:
    """A rank in two groups has made more drivers than those that share one with it; they must meet
    under the same keys."""
    first = _next_generation((7, 90))
    _next_generation((7, 91))
    assert _next_generation((7, 90)) == first + 1


def test_dense_ticks_of_a_checked_route_are_checked() -> None:
    with BUILDING:
        model = mlp()
    strategy = Strategy(warmup(3, every(1)), how=checked(two_shot()))
    with thinwire.attach(model, torch.optim.SGD(model.parameters(), 0.1), strategy) as sync:
        assert sync.flights.dense == checked(direct())
