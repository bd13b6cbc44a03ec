"""Weights of ranks: in means, in checkpoints, and where they must be alike."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import thinwire
from tests.engine.models import batch, built, loss_of, mlp, sgd_of, train, weights_of
from tests.ranks import run_ranks
from tests.threads import on_threads
from thinwire import Strategy
from thinwire.core import Driver
from thinwire.errors import AttachError, CheckpointError, StrategyError
from thinwire.how import gossip
from thinwire.on import parameters
from thinwire.what import identity
from thinwire.when import by_speed, every


def _weighted(rank: int, common: bool) -> torch.Tensor:
    model = mlp(dtype=torch.float64)
    optimizer = sgd_of(model)
    with thinwire.attach(
        model, optimizer, Strategy(every(2), on=parameters()), weight=[1, 3][rank]
    ) as sync:
        train(model, optimizer, rank, range(1))
        mine = weights_of(model)
        with sync.common_weights():
            got = weights_of(model)
        assert torch.equal(mine, weights_of(model))
        return got if common else mine


def test_common_weights_of_parameters_are_the_weighted_mean():
    first, second = run_ranks(2, _weighted, False)
    for got in run_ranks(2, _weighted, True):
        assert torch.allclose(got, (first + 3 * second) / 4, rtol=0, atol=1e-14)


def _reweighed(rank: int) -> list[float]:
    model = mlp()
    with thinwire.attach(model, sgd_of(model)) as sync:
        sync.weigh([1.0, 4.0][rank])
        state = sync.state_dict()
    with thinwire.attach(model, sgd_of(model)) as sync:
        sync.load_state_dict(state)
        held = list(sync.weights.fractions)
    with (
        thinwire.attach(model, sgd_of(model), seed=1) as sync,
        pytest.raises(CheckpointError, match="seed=0"),
    ):
        sync.load_state_dict(state)
    return held


def test_weights_and_seed_are_in_the_checkpoint():
    assert run_ranks(2, _reweighed) == [[0.2, 0.8]] * 2


@pytest.mark.parametrize("topology", ["pairs", "ring", "exponential"])
def test_gossip_wants_weights_that_are_alike(topology: str) -> None:
    strategy = Strategy(how=gossip(topology), on=parameters())  # type: ignore[arg-type]
    for error in on_threads(
        3, lambda driver: built(strategy, driver, weight=driver.rank + 1.0)
    ).values():
        assert isinstance(error, AttachError)
        assert "weights must be alike" in str(error)

    def weighed(driver: Driver) -> None:
        _, _, sync = built(strategy, driver, weight=2.0)
        sync.weigh(1.0 + driver.rank)
        sync.weights.commit()

    assert all("weights must be alike" in str(error) for error in on_threads(3, weighed).values())
    with pytest.raises(StrategyError, match=r"by_speed\(.*over gossip\(.*weights must be alike"):
        Strategy(by_speed(every(4)), identity(), gossip(topology), parameters())  # type: ignore[arg-type]


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
            held.append(list(sync.weights.fractions))
            sync.close()
        return held

    with pytest.warns(UserWarning, match=r"goes on by \[0.25, 0.75\]"):
        assert on_threads(2, work) == {rank: [[0.25, 0.75], [0.2, 0.8]] for rank in range(2)}


def _pooled(rank: int) -> torch.Tensor:
    """Ranks with batches of 3 and 7 rows, weighted by rows: the mean gradient of the 10 rows."""
    model = mlp(dtype=torch.float64)
    with thinwire.attach(model, torch.optim.SGD(model.parameters(), 0.1), weight=[3, 7][rank]):
        loss_of(model, 0, rank, [3, 7][rank]).backward()
        return torch.cat([param.grad.reshape(-1) for param in model.parameters()])


def test_weights_by_batch_size_give_the_pooled_mean():
    model = mlp(dtype=torch.float64)
    rows = [batch(0, rank, [3, 7][rank], torch.float64) for rank in range(2)]
    nn.functional.cross_entropy(
        model(torch.cat([x for x, _ in rows])), torch.cat([y for _, y in rows])
    ).backward()
    expected = torch.cat([param.grad.reshape(-1) for param in model.parameters()])
    for got in run_ranks(2, _pooled):
        assert torch.allclose(got, expected, rtol=0, atol=1e-14)
