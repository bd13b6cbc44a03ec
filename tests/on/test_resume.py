"""What targets keep survives a checkpoint: stopped and resumed is never stopped, bit for bit;
another world or period is defined."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import thinwire
from tests.engine.models import loss_of, mlp, weights_of
from tests.threads import on_threads
from thinwire import Strategy, recipes
from thinwire.core import Driver, Target
from thinwire.errors import CheckpointError
from thinwire.how import gather, gossip, native, two_shot
from thinwire.on import deltas, gradients, momentum, nesterov, optim, parameters, sgd
from thinwire.what import dct, feedback, identity, randomk, sign, topk, uniform
from thinwire.when import delayed, every, growing, staggered, warmup

STRATEGIES = {
    "signs": Strategy(
        what=feedback(dct(4) >> topk(3, per=16), 0.9), how=gather(), on=gradients(then="sign")
    ),
    "compensated": Strategy(delayed(2, every(1)), on=gradients(compensate=0.1)),
    "one bit": Strategy(
        warmup(4, every(1)), feedback(sign()), two_shot(back=feedback(sign())), momentum()
    ),
    "one bit, in its warm-up": Strategy(
        warmup(9, every(1)), feedback(sign()), two_shot(back=feedback(sign())), momentum()
    ),
    "drawn": Strategy(every(2), randomk(0.2), native(), parameters()),
    "growing": Strategy(growing(1, 4), on=parameters()),
    "eager, in the air": Strategy(
        delayed(2, every(3)), feedback(uniform(4)), gather(), deltas(nesterov(0.6, 0.9), eager=True)
    ),
    "bf16": Strategy(every(2), uniform(4), two_shot(), deltas(nesterov(), store="bf16")),
    "on the host": Strategy(delayed(1, every(3)), on=deltas(nesterov(), alpha=0.5, device="cpu")),
    "any optimiser": Strategy(every(2), identity(), native(), deltas(optim("AdamW", "lr=0.01"))),
    "odd state": Strategy(every(2), identity(), native(), deltas(optim("Adafactor", "lr=0.01"))),
    "own anchors": Strategy(
        every(2), identity(), gossip("pairs"), parameters(sgd(0.7, 0.5), pull=0.9)
    ),
    "own anchors in bf16": Strategy(
        every(2), identity(), gossip("pairs"), parameters(sgd(0.7, 0.5), store="bf16", device="cpu")
    ),
    "own anchors, any optimiser": Strategy(
        every(2), identity(), gossip("pairs"), parameters(optim("AdamW", "lr=0.01"))
    ),
}
SAVED, ALL = 6, 13
MODELS = [
    mlp(seed=seed, depth=2) for seed in range(2)
]  # made here, as threads share torch's generator


def start(
    strategy: Strategy, driver: Driver, seed: int = 0, **options: Any
) -> tuple[nn.Module, torch.optim.Optimizer, thinwire.Syncer]:
    model = copy.deepcopy(MODELS[seed])
    optimizer = (
        torch.optim.SGD(model.parameters(), 1e-2)
        if strategy.on.updates
        else torch.optim.AdamW(model.parameters(), 1e-2)
    )
    return (
        model,
        optimizer,
        thinwire.attach(model, optimizer, strategy, driver=driver, bucket_bytes=1200, **options),
    )


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, which: range) -> None:
    for step in which:
        loss_of(model, step, rank).backward()
        optimizer.step()
        optimizer.zero_grad()


def saved(strategy: Strategy, world: int, at: int = SAVED) -> dict[int, Any]:
    def work(driver: Driver) -> Any:
        model, optimizer, sync = start(strategy, driver)
        steps(model, optimizer, driver.rank, range(at))
        state = sync.state_dict()
        told = model.state_dict(), optimizer.state_dict(), state, weights_of(model)
        sync.close()
        return told

    return on_threads(world, work)


@pytest.mark.parametrize("name", STRATEGIES)
def test_resumed_is_never_stopped(name: str) -> None:
    strategy = STRATEGIES[name]

    def whole(driver: Driver) -> tuple[Tensor, Tensor]:
        model, optimizer, sync = start(strategy, driver)
        steps(model, optimizer, driver.rank, range(ALL))
        with sync.common_weights():
            common = weights_of(model)
        own = weights_of(model)
        sync.close()
        return own, common

    before = saved(strategy, 2)

    def again(driver: Driver) -> tuple[Tensor, Tensor]:
        model, optimizer, sync = start(strategy, driver, seed=1)
        theirs, inner, state, _ = before[driver.rank]
        model.load_state_dict(theirs)
        optimizer.load_state_dict(inner)
        sync.load_state_dict(state)
        steps(model, optimizer, driver.rank, range(SAVED, ALL))
        with sync.common_weights():
            common = weights_of(model)
        own = weights_of(model)
        sync.close()
        return own, common

    expected, got = on_threads(2, whole), on_threads(2, again)
    for rank in range(2):
        assert not isinstance(expected[rank], BaseException), expected[rank]
        assert not isinstance(got[rank], BaseException), got[rank]
        assert torch.equal(got[rank][0], expected[rank][0])
        assert torch.equal(got[rank][1], expected[rank][1])


@pytest.mark.filterwarnings("ignore:the state holds none of this world")
@pytest.mark.parametrize("name", ["eager, in the air", "any optimiser", "bf16"])
def test_another_world_goes_on_from_the_anchor(name: str) -> None:
    """Three ranks take up what two have saved: all start at one anchor, and it moves as the sum in
    the air says."""
    strategy = STRATEGIES[name]
    before = saved(strategy, 2)
    merged = {key: value for told in before.values() for key, value in told[2].items()}

    def again(driver: Driver) -> tuple[Tensor, Tensor, Tensor]:
        model, optimizer, sync = start(strategy, driver, seed=1)
        sync.load_state_dict(merged)
        first = weights_of(model)
        with sync.common_weights():
            anchor = weights_of(model)
        steps(model, optimizer, driver.rank, range(SAVED, ALL))
        sync.check()
        sync.close()
        return first, anchor, weights_of(model)

    got = on_threads(3, again)
    for rank in range(3):
        assert not isinstance(got[rank], BaseException), got[rank]
        assert torch.equal(got[rank][0], got[0][0])
        assert torch.equal(got[rank][0], got[rank][1])
        assert got[rank][2].isfinite().all()


def test_an_eager_move_that_another_world_takes_up_is_forgotten_and_the_mean_still_lands() -> None:
    """Saved between launch and landing: the new ranks start at the anchor, so the landing alone
    moves them to the new one."""
    strategy = Strategy(delayed(2, every(3)), on=deltas(sgd(1.0), eager=True))
    before = saved(strategy, 2, at=4)  # launched at step 2, due at step 4
    merged = {key: value for told in before.values() for key, value in told[2].items()}

    def again(driver: Driver) -> tuple[Tensor, Tensor]:
        model, optimizer, sync = start(strategy, driver, seed=1)
        sync.load_state_dict(merged)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
            group["weight_decay"] = 0.0
        steps(model, optimizer, driver.rank, range(4, 5))
        with sync.common_weights():
            common = weights_of(model)
        own = weights_of(model)
        sync.close()
        return own, common

    with pytest.warns(UserWarning, match="start anew: on/ahead"):
        got = on_threads(3, again)
    for rank in range(3):
        assert not isinstance(got[rank], BaseException), got[rank]
        assert torch.allclose(got[rank][0], got[rank][1], atol=1e-7)


# -- another period
# --------------------------------------------------------------------------------------------------


def taken_up(before: dict[int, Any], strategy: Strategy, until: int) -> dict[int, Any]:
    """Two ranks go on from what was saved; the steps at which they were equal, and the anchor at
    the end."""

    def again(driver: Driver) -> tuple[list[Tensor], Tensor]:
        model, optimizer, sync = start(strategy, driver, seed=1)
        theirs, inner, state, _ = before[driver.rank]
        model.load_state_dict(theirs)
        optimizer.load_state_dict(inner)
        sync.load_state_dict(state)
        seen = []
        for step in range(SAVED, until):
            steps(model, optimizer, driver.rank, range(step, step + 1))
            seen.append(weights_of(model))
        with sync.common_weights():
            common = weights_of(model)
        sync.close()
        return seen, common

    return on_threads(2, again)


@pytest.mark.parametrize("on", [deltas(sgd(0.8, 0.5)), parameters(), deltas(nesterov())], ids=repr)
def test_a_state_goes_on_under_another_period_and_says_so(on: Target) -> None:
    """Saved at step 6 under every(3); under every(5) the next landings are those of steps 9 and 14,
    as from the start."""
    before = saved(Strategy(every(3), on=on), 2)
    with pytest.warns(
        UserWarning,
        match=r"saved under every\(n=3\) and goes on under every\(n=5\), counted from step 6",
    ):
        got = taken_up(before, Strategy(every(5), on=on), 15)
    assert not isinstance(got[0], BaseException), got[0]
    equal = [
        SAVED + i
        for i, (a, b) in enumerate(zip(got[0][0], got[1][0], strict=True))
        if torch.equal(a, b)
    ]
    assert equal == [9, 14]
    assert torch.equal(got[0][1], got[1][1])


@pytest.mark.parametrize(
    ("then", "now", "told"),
    [
        (
            Strategy(every(3), on=deltas(sgd(1.0))),
            Strategy(every(5), on=deltas(sgd(0.9))),
            "another strategy",
        ),
        (Strategy(every(1)), Strategy(every(2)), "another strategy"),
        (
            Strategy(every(3), on=deltas(sgd(1.0))),
            Strategy(every(3), uniform(4), two_shot(), deltas(sgd(1.0))),
            "another strategy",
        ),
        (
            Strategy(
                delayed(2, every(5)), on=deltas(sgd(1.0))
            ),  # launched at step 4, saved after step 5
            Strategy(delayed(2, every(4)), on=deltas(sgd(1.0))),
            "holds flights or fragments of another schedule",
        ),
        (
            Strategy(every(4), on=deltas(sgd(1.0))),
            Strategy(staggered(2, every(4)), on=deltas(sgd(1.0))),
            "holds flights or fragments of another schedule",
        ),
    ],
    ids=["outer rate", "batch", "codec", "in the air", "fragments"],
)
def test_anything_else_that_differs_is_refused(then: Strategy, now: Strategy, told: str) -> None:
    got = taken_up(saved(then, 2), now, 8)
    assert isinstance(got[0], CheckpointError)
    assert told in str(got[0])
    assert repr(then) in str(got[0])
    assert repr(now) in str(got[0])


# -- Muon inside
# --------------------------------------------------------------------------------------------------


def test_muloco_takes_torchs_muon_inside_and_resumes_with_it() -> None:
    """Three matrices; each rank's own Muon, whose momentum is saved by rank."""
    strategy = recipes.muloco(period=3)
    draws = torch.Generator().manual_seed(0)
    firsts = [torch.randn(6, 6, generator=draws) for _ in range(3)]
    minima = [[torch.randn(6, 6, generator=draws) for _ in range(3)] for _ in range(2)]

    def work(stop: int, state: dict[int, Any] | None, driver: Driver) -> Any:
        model = nn.ParameterList(nn.Parameter(first.clone()) for first in firsts)
        optimizer = torch.optim.Muon(model.parameters(), lr=0.05)
        sync = thinwire.attach(model, optimizer, strategy, driver=driver)
        if state is not None:
            sync.load_state_dict(state[driver.rank][0])
        for _ in range(sync.step, stop):
            sum(
                (p - m).square().sum() for p, m in zip(model, minima[driver.rank], strict=True)
            ).backward()  # type: ignore[union-attr]
            optimizer.step()
            optimizer.zero_grad()
        told = sync.state_dict(), torch.cat([p.detach().reshape(-1) for p in model])
        sync.check()
        sync.close()
        return told

    whole = on_threads(2, lambda driver: work(12, None, driver))
    half = on_threads(2, lambda driver: work(7, None, driver))
    assert not isinstance(half[0], BaseException), half[0]
    assert any("momentum_buffer" in key and key.startswith("rank1|private") for key in half[1][0])
    resumed = on_threads(2, lambda driver: work(12, half, driver))
    assert all(torch.equal(resumed[rank][1], whole[rank][1]) for rank in range(2))
    mean = [(a + b) / 2 for a, b in zip(*minima, strict=True)]
    goal, begun = (
        torch.cat([each.reshape(-1) for each in matrices]) for matrices in (mean, firsts)
    )
    assert float((whole[0][1] - goal).norm()) < float((begun - goal).norm())
