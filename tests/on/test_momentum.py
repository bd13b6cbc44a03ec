"""Adam behind the wire: what torch's Adam does while dense, and its closed form with a frozen
variance after that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import thinwire
from tests.fakes import FakeBucket
from tests.test_theory import fly, linear, near, noise, rows, sgd_of, squares
from thinwire import Strategy, recipes
from thinwire.core import Schedule
from thinwire.errors import AttachError, StrategyError
from thinwire.how import gather, two_shot
from thinwire.on import gradients, momentum
from thinwire.optim.muon import muon
from thinwire.what import feedback, identity, sign
from thinwire.when import delayed, every, staggered, thinning, warmup

LR, BETAS, EPS = 0.05, (0.9, 0.95), 1e-8


def pooled(step: int, w: Tensor, world: int) -> Tensor:
    return torch.stack([squares(*rows(step, rank, 5), w) for rank in range(world)]).mean(0)


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_while_dense_it_is_torchs_adamw(world: int, decay: float) -> None:
    """With weight decay too, which plain SGD adds to the update as AdamW does."""
    strategy = Strategy(warmup(99, every(1)), on=momentum(BETAS, EPS))
    seen = fly(world, strategy, [noise(6, key=0)], linear, 12, sgd_of(LR, weight_decay=decay))
    weight = nn.Parameter(noise(6, key=0))
    adamw = torch.optim.AdamW([weight], LR, BETAS, EPS, weight_decay=decay)
    for step in range(12):
        weight.grad = pooled(step, weight.detach(), world)
        adamw.step()
        for rank in range(world):
            assert near(seen[rank].weights[step], weight.detach(), 1e-12), step


def by_hand(steps: int, world: int, dense: set[int]) -> list[Tensor]:
    """Adam whose variance moves at some steps only."""
    w = noise(6, key=0)
    m, v, refreshed, trace = torch.zeros_like(w), torch.zeros_like(w), 0, []
    for step in range(steps):
        g = pooled(step, w, world)
        m = BETAS[0] * m + (1 - BETAS[0]) * g
        if step in dense:
            v, refreshed = BETAS[1] * v + (1 - BETAS[1]) * g * g, refreshed + 1
        root = (v / (1 - BETAS[1] ** refreshed)).sqrt()
        w = w - LR * m / (1 - BETAS[0] ** (step + 1)) / (root + EPS)
        trace.append(w)
    return trace


@pytest.mark.parametrize("when", [warmup(4, every(1)), thinning(12, every(1), kappa=2)], ids=repr)
def test_with_identity_it_is_adam_with_a_frozen_variance(when: Schedule) -> None:
    dense = {step for step in range(15) if when.tick(step, 1).dense}
    assert len(dense) < 10
    expected = by_hand(15, 3, dense)
    for seen in fly(
        3,
        Strategy(when, identity(), gather(), momentum(BETAS, EPS)),
        [noise(6, key=0)],
        linear,
        15,
        sgd_of(LR),
    ):
        assert all(near(got, want) for got, want in zip(seen.weights, expected, strict=True))


def test_weights_of_ranks_enter_the_momentum_as_shares() -> None:
    """Ranks that count 1 and 3: the momentum is the weighted mean's, before and after the
    freeze."""
    expected, w = [], noise(6, key=0)
    m = v = torch.zeros(6, dtype=torch.float64)
    for step in range(8):
        g = 0.25 * squares(*rows(step, 0, 5), w) + 0.75 * squares(*rows(step, 1, 5), w)
        m = 0.9 * m + 0.1 * g
        v = 0.95 * v + 0.05 * g * g if step < 3 else v
        w = w - LR * m / (1 - 0.9 ** (step + 1)) / (
            (v / (1 - 0.95 ** min(step + 1, 3))).sqrt() + EPS
        )
        expected.append(w)

    def pull(rank: int, step: int, weights: list[Tensor]) -> list[Tensor]:
        return linear(rank, step, weights)

    from tests.threads import on_threads

    def work(driver: Any) -> list[Tensor]:
        weight, seen = nn.Parameter(noise(6, key=0)), []
        optimizer = torch.optim.SGD([weight], LR)
        strategy = Strategy(warmup(3, every(1)), on=momentum(BETAS, EPS))
        with thinwire.attach(
            nn.ParameterList([weight]),
            optimizer,
            strategy,
            driver=driver,
            weight=1.0 + 2 * driver.rank,
        ):
            for step in range(8):
                (weight * pull(driver.rank, step, [weight.detach().clone()])[0]).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
                seen.append(weight.detach().clone())
        return seen

    for seen in on_threads(2, work).values():
        assert not isinstance(seen, BaseException), seen
        assert all(near(got, want) for got, want in zip(seen, expected, strict=True))


def test_accumulated_passes_are_one_step() -> None:
    """Two passes a step: the schedule's dense phase takes one pass each, what follows takes two."""
    strategy = Strategy(warmup(2, every(2)), on=momentum(BETAS, EPS))
    model = nn.ParameterList([nn.Parameter(torch.zeros(3, dtype=torch.float64))])
    optimizer = torch.optim.SGD(model.parameters(), LR)
    with thinwire.attach(model, optimizer, strategy) as sync:
        for _ in range(8):
            (model[0] * torch.ones(3)).sum().backward()
            if not sync.accumulating:
                optimizer.step()
                optimizer.zero_grad()
        steps = [leaf for path, leaf in sync.buckets[0].state.walk() if path == "steps"]
        assert [int(leaf.value) for leaf in steps] == [2 + 3]
        mean = sync.buckets[0].state["mean"].flat
        assert near(mean, torch.full((3,), 2 + (1 - 2) * 0.9**3 - 0.9**5, dtype=torch.float64)), (
            "G is 1, 1, 2, 2, 2"
        )


def test_one_bit_adam_trains_nearly_as_adam_does_and_ranks_stay_equal() -> None:
    strategy = recipes.onebit_adam(start=30, beta2=0.95)
    start = noise(40, key=0)
    target = [noise(40, key=rank + 1) for rank in range(3)]

    def pull(rank: int, step: int, w: list[Tensor]) -> list[Tensor]:
        return [w[0] - target[rank] + noise(40, key=10_000 + 3 * step + rank)]

    ours = fly(3, strategy, [start], pull, 150, sgd_of(0.02))
    exact = fly(
        3,
        Strategy(warmup(30, every(1)), identity(), two_shot(), momentum((0.9, 0.95))),
        [start],
        pull,
        150,
        sgd_of(0.02),
    )
    best = sum(target) / 3
    assert all(torch.equal(a.weights[-1], ours[0].weights[-1]) for a in ours)
    assert not near(ours[0].weights[-1], exact[0].weights[-1], 1e-6), "signs lost something"
    off, dense_off = (
        float((seen[0].weights[-1] - best).norm() / (start - best).norm()) for seen in (ours, exact)
    )
    assert off < 0.25, (off, dense_off)


def test_what_is_not_finite_leaves_the_averages_as_they_were() -> None:
    bucket = FakeBucket(torch.zeros(3), when=warmup(1, every(1)))
    target = momentum()
    state = target.init(bucket)
    for total in ([1.0, 2.0, 3.0], [1.0, 1.0, 1.0], [float("inf"), 1.0, 1.0], [2.0, 1.0, 1.0]):
        before = {path: leaf.value.clone() for path, leaf in state.walk()}
        target.read(bucket, state, weight=0.5)
        target.write(bucket, torch.tensor(total), state)
        if total[0] == float("inf"):
            assert bucket.grad.isnan().all()
            assert all(
                torch.equal(leaf.value, before[path])
                for path, leaf in state.walk()
                if path != "step"
            )
        else:
            assert bucket.grad.isfinite().all()
            assert not torch.equal(state["mean"].value, before["mean"])


@pytest.mark.parametrize(
    ("when", "told"),
    [
        (every(1), "it begins without a variance"),
        (delayed(1, warmup(3, every(1))), "has not landed"),
        (staggered(2, every(4)), "needs every momentum"),
    ],
    ids=repr,
)
def test_a_schedule_that_does_not_fit_is_refused(when: Schedule, told: str) -> None:
    with pytest.raises(StrategyError, match=told):
        Strategy(when, on=momentum())


class MyAdam(torch.optim.AdamW):
    """An optimiser of torch by another name."""


class MySGD(torch.optim.SGD):
    """The same, and plain."""


class Stranger(torch.optim.Optimizer):
    """An optimiser of which nobody knows what it does."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})


UPDATES = {
    "momentum": recipes.onebit_adam(2),
    "demo": recipes.demo(),
    "signs": Strategy(on=gradients(then="sign")),
}


@pytest.mark.parametrize("strategy", UPDATES.values(), ids=UPDATES)
@pytest.mark.parametrize(
    "make",
    [
        lambda model: torch.optim.AdamW(model.parameters()),
        lambda model: torch.optim.SGD(
            [{"params": [model[0].weight]}, {"params": [model[1].weight], "momentum": 0.9}], 0.1
        ),
        lambda model: MyAdam(model.parameters()),
        lambda model: Stranger(model.parameters()),
        muon,
    ],
    ids=["AdamW", "momentum in one group", "subclass", "stranger", "muon"],
)
def test_an_optimiser_that_averages_by_itself_is_refused(make: Any, strategy: Strategy) -> None:
    """Whatever its class is called and wherever it is written, for every target that makes the
    update."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with pytest.raises(AttachError, match=r"would average it once more: use torch.optim.SGD"):
        thinwire.attach(model, make(model), strategy)


@pytest.mark.parametrize("strategy", UPDATES.values(), ids=UPDATES)
@pytest.mark.parametrize("kind", [torch.optim.SGD, MySGD])
def test_a_plain_sgd_is_taken(kind: type[torch.optim.SGD], strategy: Strategy) -> None:
    model = nn.Linear(2, 1)
    with thinwire.attach(model, kind(model.parameters(), 0.1, weight_decay=0.1), strategy):
        pass


@pytest.mark.parametrize("strategy", [Strategy(), Strategy(on=gradients(reduce="sum"))], ids=repr)
def test_gradients_are_for_every_optimiser(strategy: Strategy) -> None:
    model = nn.Linear(2, 1)
    with thinwire.attach(model, MyAdam(model.parameters()), strategy):
        pass


def test_a_scaler_is_refused() -> None:
    model = nn.Linear(2, 1)
    strategy = Strategy(warmup(3, every(1)), feedback(sign()), two_shot(), momentum())
    with pytest.raises(AttachError, match="not in units of the loss"):
        thinwire.attach(
            model,
            torch.optim.SGD(model.parameters(), 0.1),
            strategy,
            scaler=torch.amp.GradScaler("cpu", init_scale=8.0),
        )


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(StrategyError) as caught:
        momentum((1.0, 0.9), eps=0.0)
    assert len(caught.value.reasons) == 2
