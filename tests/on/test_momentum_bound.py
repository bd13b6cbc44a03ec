"""One-bit Adam on weights of small frozen variance: what a sign decodes to there is not an
update."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, Literal

import pytest
import tomli_w
import torch
from torch import Tensor, nn

import thinwire
from tests.engine.models import DRAWING
from tests.ranks import run_ranks
from tests.threads import on_threads
from thinwire import Strategy, recipes
from thinwire.core import Driver
from thinwire.errors import StrategyError
from thinwire.on import momentum

ROWS, UNSEEN, LR, WARM = 40, 10, 0.01, 20
ONE_BIT = {
    "onebit_adam": recipes.onebit_adam(WARM),
    "zero_one_adam": recipes.zero_one_adam(30, kappa=4),
}


def lookup(seed: int = 0) -> nn.Sequential:
    """An embedding whose last rows no batch looks up, and a head: two buckets, in whose blocks rows
    seen and unseen mix."""
    with DRAWING:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Embedding(ROWS, 8), nn.Linear(8, ROWS))


def loss_of(model: nn.Module, step: int, rank: int, rows: int = ROWS - UNSEEN) -> Tensor:
    tokens = torch.randint(
        0, rows, (16,), generator=torch.Generator().manual_seed(10 * step + rank)
    )
    return nn.functional.cross_entropy(model(tokens), (7 * tokens + 3) % (ROWS - UNSEEN))


def train(
    rank: int,
    driver: Driver | None,
    strategy: Strategy,
    adam: bool = False,
    steps: int = 40,
    skip: Literal["never", "zeroed", "as it is"] = "never",
) -> tuple[Tensor, Tensor]:
    """How far each row of the embedding has moved at most, and where it is; ranks that skip do so
    by turns."""
    model = lookup()
    start = model[0].weight.detach().clone()
    optimizer = (torch.optim.Adam if adam else torch.optim.SGD)(model.parameters(), LR)
    with thinwire.attach(model, optimizer, strategy, driver=driver, bucket_bytes=400) as sync:
        assert len(sync.buckets) == 2
        for step in range(steps):
            skipped = skip != "never" and step > 0 and (step + rank) % 4 == 0
            if skip == "zeroed" or not skipped:
                optimizer.zero_grad()
            if skipped:
                sync.skip_step()  # as it is, .grad holds the last step's update
            else:
                loss_of(model, step, rank).backward()
            optimizer.step()
        sync.check()
    return (model[0].weight.detach() - start).abs().amax(1), model[0].weight.detach()


@cache
def on_three(*args: Any, **settings: Any) -> list[tuple[Tensor, Tensor]]:
    found = on_threads(3, lambda driver: train(driver.rank, driver, *args, **settings))
    assert all(isinstance(each, tuple) for each in found.values()), found
    assert all(torch.equal(found[0][1], found[rank][1]) for rank in range(3))
    return [found[rank] for rank in range(3)]


@pytest.mark.parametrize("strategy", ONE_BIT.values(), ids=ONE_BIT)
def test_rows_unseen_in_warm_up_stay_where_adam_leaves_them(strategy: Strategy) -> None:
    moved, _ = on_three(strategy)[0]
    adams, _ = on_three(Strategy(), adam=True)[0]
    assert not adams[-UNSEEN:].any()
    assert not moved[-UNSEEN:].any(), moved[-UNSEEN:]
    assert 0.1 * adams.max() < moved.max() < 3 * adams.max(), (
        "rows that were seen train as far as Adam takes them"
    )


@pytest.mark.parametrize("strategy", ONE_BIT.values(), ids=ONE_BIT)
def test_no_step_is_longer_than_the_bound(strategy: Strategy) -> None:
    tight = replace(strategy, on=replace(strategy.on, bound=0.5))
    moved, _ = on_three(tight)[0]
    adams, _ = on_three(Strategy(), adam=True, steps=WARM)[0]
    assert moved.max() <= adams.max() + 0.5 * LR * 20 + 1e-5


@pytest.mark.parametrize("strategy", ONE_BIT.values(), ids=ONE_BIT)
def test_without_a_bound_the_published_recurrence_throws_them(strategy: Strategy) -> None:
    """What the default is for: an unseen row decodes to plus or minus its block's magnitude, over
    eps."""
    moved, _ = on_three(replace(strategy, on=replace(strategy.on, bound=None)))[0]
    assert moved[-UNSEEN:].max() > 100


@pytest.mark.parametrize("strategy", ONE_BIT.values(), ids=ONE_BIT)
def test_a_skipped_step_adds_no_update_to_the_momentum(strategy: Strategy) -> None:
    """`.grad` holds the last update where nobody has zeroed it, which is a thousand times a
    gradient."""
    moved, weights = on_three(strategy, skip="as it is")[0]
    assert torch.equal(weights, on_three(strategy, skip="zeroed")[0][1])
    assert 0.1 < moved.max() / on_three(strategy)[0][0].max() < 2


def _on_gloo(rank: int) -> tuple[Tensor, Tensor]:
    return train(rank, None, ONE_BIT["onebit_adam"], skip="as it is")


def test_over_gloo_the_bits_are_the_same() -> None:
    here = on_three(ONE_BIT["onebit_adam"], skip="zeroed")[0][1]
    for moved, weights in run_ranks(3, _on_gloo):
        assert torch.equal(weights, here)
        assert not moved[-UNSEEN:].any()


def test_the_bound_shows_where_it_is_not_the_default() -> None:
    """Saved states are told apart by `repr`: those of before the bound are still read."""
    assert repr(momentum()) == "momentum(betas=(0.9, 0.999), eps=1e-08)"
    assert repr(momentum(bound=None)) == "momentum(betas=(0.9, 0.999), eps=1e-08, bound=None)"


@pytest.mark.parametrize("bound", [None, 0.5, 3.2])
def test_toml_keeps_the_bound(bound: float | None) -> None:
    """TOML has no null, so `None` needs a word where it is not the default."""
    strategy = replace(ONE_BIT["onebit_adam"], on=momentum(bound=bound))
    assert Strategy.from_toml(strategy.to_toml()) == strategy
    assert Strategy.from_toml(tomli_w.dumps(strategy.short())) == strategy


@pytest.mark.parametrize("bound", [0.0, -1.0, float("inf"), float("nan")])
def test_a_bound_that_bounds_nothing_is_refused(bound: float) -> None:
    with pytest.raises(StrategyError, match=r"bound=.*above 0, and finite; None for no bound"):
        momentum(bound=bound)
