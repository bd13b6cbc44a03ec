"""Several backward passes to an optimiser step, in the user's own loop: every gradient counts
once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import thinwire
from tests.engine.models import DRAWING, WIDTH, batch, loss_of, mlp, sgd_of, weights_of
from tests.ranks import run_ranks
from tests.threads import on_threads
from thinwire.core import Driver
from thinwire.errors import AttachError, NotLandedError
from thinwire.how import gather, two_shot
from thinwire.on import deltas, gradients, momentum, sgd
from thinwire.strategy import Strategy
from thinwire.what import feedback, lowrank, sign, topk, uniform
from thinwire.when import delayed, every, warmup

STEPS, PASSES = 5, 3


def grads_of(model: nn.Module) -> Tensor:
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
            for p in model.parameters()
        ]
    )


def means(world: int, passes: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """The mean gradient over ranks of each backward pass, at the first weights."""
    out = []
    for index in range(passes):
        model = mlp(dtype=dtype)
        for rank in range(world):
            (loss_of(model, index, rank) / world).backward()
        out.append(grads_of(model))
    return out


def passes_at_rest(
    driver: Driver, strategy: Strategy, zero: bool, **options: Any
) -> tuple[list[Tensor], Tensor]:
    """What `optimizer.step()` finds in `.grad` with a rate of 0 and PASSES backward passes a step;
    the sum of what has not landed."""
    model = mlp(dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    seen = []
    with thinwire.attach(
        model, optimizer, strategy, driver=driver, bucket_bytes=4000, **options
    ) as sync:
        for step in range(STEPS):
            for index in range(PASSES):
                loss_of(model, step * PASSES + index, driver.rank).backward()
            seen.append(grads_of(model).clone())
            optimizer.step()
            optimizer.zero_grad(set_to_none=zero)
        left = torch.zeros((), dtype=torch.float64)
        for key, value in sync.state_dict().items():
            in_the_air = key.startswith("all|air/") and driver.rank == 0
            if in_the_air or "residual" in key.split("|")[1]:
                left += value.sum()
    return seen, left


@pytest.mark.parametrize("zero", [True, False], ids=["none", "zeros"])
@pytest.mark.parametrize("tau", [0, 1, 2, 4])
def test_means_of_all_passes_add_up_however_late_they_land(tau: int, zero: bool) -> None:
    strategy = Strategy(delayed(tau, every(1))) if tau else Strategy()
    expected = means(2, STEPS * PASSES)
    for seen, _ in on_threads(2, lambda driver: passes_at_rest(driver, strategy, zero)).values():
        for step, got in enumerate(seen):
            landed = range(max(step * PASSES - tau, 0), max((step + 1) * PASSES - tau, 0))
            want = sum((expected[index] for index in landed), torch.zeros_like(got))
            assert torch.allclose(got, want, rtol=0, atol=1e-12)


def test_a_plain_sum_counts_each_pass_once() -> None:
    strategy = Strategy(on=gradients(reduce="sum"))
    expected = means(3, STEPS * PASSES)
    for seen, _ in on_threads(3, lambda driver: passes_at_rest(driver, strategy, True)).values():
        for step, got in enumerate(seen):
            want = 3 * sum(expected[step * PASSES : (step + 1) * PASSES])
            assert torch.allclose(got, want, rtol=0, atol=1e-12)


FEEDBACK = {
    "topk": Strategy(what=feedback(topk(0.05)), how=gather()),
    "qsgd": Strategy(what=feedback(uniform(2)), how=gather()),
    "powersgd": Strategy(what=feedback(lowrank(1))),
    "two-sided sign": Strategy(what=feedback(sign(16)), how=two_shot(back=feedback(sign(16)))),
    "accumulated": Strategy(every(PASSES), feedback(topk(0.05)), gather()),
    "delayed": Strategy(delayed(PASSES, every(1)), feedback(topk(0.05)), gather()),
}


@pytest.mark.parametrize("name", FEEDBACK)
def test_what_was_applied_and_what_is_left_is_the_sum_of_all_passes(name: str) -> None:
    strategy = FEEDBACK[name]
    results = on_threads(2, lambda driver: passes_at_rest(driver, strategy, True))
    expected = torch.stack(means(2, STEPS * PASSES)).sum()
    applied = torch.stack(results[0][0]).sum()
    left = sum(residual for _, residual in results.values())
    assert torch.allclose(applied + left, expected, rtol=0, atol=1e-9)
    assert float(left.abs()) > 1e-6


def _over_gloo(rank: int) -> list[Tensor]:
    out = []
    for strategy in (
        Strategy(delayed(2, every(1))),
        Strategy(on=gradients(reduce="sum")),
        FEEDBACK["topk"],
    ):
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        with thinwire.attach(model, optimizer, strategy) as sync:
            for step in range(4):
                for index in range(2):
                    loss_of(model, 2 * step + index, rank).backward()
                optimizer.step()
                optimizer.zero_grad()
            sync.check()
        out.append(weights_of(model))
    return out


def test_three_ranks_over_gloo_train_as_threads_do() -> None:
    over_gloo = run_ranks(3, _over_gloo)

    def work(driver: Driver, strategy: Strategy) -> Tensor:
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        with thinwire.attach(model, optimizer, strategy, driver=driver):
            for step in range(4):
                for index in range(2):
                    loss_of(model, 2 * step + index, driver.rank).backward()
                optimizer.step()
                optimizer.zero_grad()
        return weights_of(model)

    strategies = (
        Strategy(delayed(2, every(1))),
        Strategy(on=gradients(reduce="sum")),
        FEEDBACK["topk"],
    )
    for i, strategy in enumerate(strategies):
        on_fabric = on_threads(3, lambda driver, chosen=strategy: work(driver, chosen))
        for rank in range(3):
            assert torch.allclose(over_gloo[rank][i], on_fabric[0], rtol=0, atol=1e-5)


UPDATES = {
    "momentum": Strategy(
        warmup(2, every(1)), feedback(sign(16)), two_shot(back=feedback(sign(16))), momentum()
    ),
    "sign": Strategy(what=feedback(topk(0.1)), how=gather(), on=gradients(then="sign")),
}


@pytest.mark.parametrize("name", UPDATES)
def test_a_gradient_is_never_added_to_an_update(name: str) -> None:
    def work(driver: Driver) -> list[str]:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        said = []
        sync = thinwire.attach(model, optimizer, UPDATES[name], driver=driver)
        for step in range(4):
            loss_of(model, step, driver.rank).backward()
            if step == 3:
                with pytest.raises(
                    NotLandedError, match=r"holds the update of the last landing"
                ) as caught:
                    loss_of(model, step, driver.rank).backward()
                said.append(str(caught.value))
            optimizer.step()
            optimizer.zero_grad(set_to_none=step % 2 == 0)
        sync.close()
        return said

    for said in on_threads(2, work).values():
        assert len(said) == 1
        assert "every(n)" in said[0]


def test_zeroing_between_two_passes_drops_what_had_landed() -> None:
    """Under every(2) the first pass sets the landed mean aside; a loop that then zeroes has given
    it up."""

    def work(driver: Driver) -> tuple[Tensor, Tensor]:
        model = mlp(dtype=torch.float64)
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        strategy = Strategy(delayed(2, every(2)))
        with thinwire.attach(model, optimizer, strategy, driver=driver):
            for index in range(4):
                loss_of(model, index, driver.rank).backward()  # the mean of 0 and 1 has landed
            loss_of(model, 4, driver.rank).backward()
            optimizer.zero_grad()
            loss_of(model, 5, driver.rank).backward()
            return grads_of(model), model[0].weight.grad

    expected = means(2, 4)
    for got, _ in on_threads(2, work).values():
        assert torch.allclose(got, expected[2] + expected[3], rtol=0, atol=1e-12)


def test_autograd_grad_leaves_what_has_landed_alone() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(model, optimizer, FEEDBACK["topk"]):
        loss_of(model, 0, 0).backward()
        before = grads_of(model).clone()
        torch.autograd.grad(loss_of(model, 1, 0), list(model.parameters()))
        assert torch.equal(before, grads_of(model))
        assert bool(before.any())


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with DRAWING:
            torch.manual_seed(1)
            self.a, self.b = (nn.Linear(WIDTH, 1).double() for _ in range(2))


@pytest.mark.parametrize(
    "strategy", [Strategy(), Strategy(delayed(1, every(1)))], ids=["dense", "delayed"]
)
def test_passes_that_reach_other_parameters_add_up(strategy: Strategy) -> None:
    """A GAN's or a multi-task loop: each pass has its own loss and its own part of the model."""

    def work(driver: Driver) -> list[Tensor]:
        model = TwoHeads()
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        with thinwire.attach(model, optimizer, strategy, driver=driver):
            for index, head in enumerate((model.a, model.b, model.a, model.a)):
                head(batch(index, driver.rank, dtype=torch.float64)[0]).sum().backward()
            return [head.weight.grad.flatten() for head in (model.a, model.b)]

    def expected(indices: tuple[int, ...]) -> Tensor:
        return sum(
            batch(i, rank, dtype=torch.float64)[0].sum(0) / 2 for i in indices for rank in range(2)
        )

    first = (0, 2) if strategy.when.delay else (0, 2, 3)
    for a, b in on_threads(2, work).values():
        assert torch.allclose(a, expected(first), rtol=0, atol=1e-12)
        assert torch.allclose(b, expected((1,)), rtol=0, atol=1e-12)


class Tasks(nn.Module):
    """Two heads of one number each, whose gradient is what a pass multiplies them by."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(2))


TASKS = {
    "dense": (Strategy(), 0),
    "sum": (Strategy(on=gradients(reduce="sum")), 0),
    "topk": (Strategy(what=feedback(topk(1.0)), how=gather()), 0),
    "delayed": (Strategy(delayed(1, every(1))), 1),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_head_that_only_the_first_of_several_passes_reaches_counts_once(name: str) -> None:
    strategy, tau = TASKS[name]

    def work(driver: Driver) -> list[tuple[float, float]]:
        model = Tasks()
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        seen = []
        with thinwire.attach(model, optimizer, strategy, driver=driver):
            for step in range(3):
                for index in range(4):
                    head = model.a if index == 0 else model.b
                    (head * (10.0 * step + index + 1)).sum().backward()
                seen.append(
                    (0.0 if model.a.grad is None else float(model.a.grad), float(model.b.grad))
                )
                optimizer.step()
                optimizer.zero_grad()
        return seen

    times = 2 if name == "sum" else 1
    for seen in on_threads(2, work).values():
        for step, (a, b) in enumerate(seen):
            last = (
                10.0 * (step - 1) + 4 if tau and step else 0.0
            )  # of the step before, landing in this one's first pass
            assert a == pytest.approx(times * (10.0 * step + 1))
            assert b == pytest.approx(
                times * (30.0 * step + 9 - (10.0 * step + 4 if tau else 0)) + last
            )


@pytest.mark.parametrize("name", TASKS)
def test_a_gradient_that_the_loop_puts_there_before_backward_is_the_ranks_own(name: str) -> None:
    strategy, tau = TASKS[name]

    def work(driver: Driver) -> float:
        model = Tasks()
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        with thinwire.attach(model, optimizer, strategy, driver=driver):
            for _ in range(2 + tau):
                optimizer.zero_grad()
                model.a.grad = torch.full((1,), 10.0 * (driver.rank + 1), dtype=torch.float64)
                (model.a * (driver.rank + 1)).sum().backward()
            return float(model.a.grad)

    for got in on_threads(2, work).values():
        assert got == pytest.approx(33.0 if name == "sum" else 16.5)


def test_a_delayed_mean_that_is_zeroed_without_a_step_is_told() -> None:
    model = Tasks()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(model, optimizer, TASKS["delayed"][0]):
        for index in range(2):
            (model.a * (index + 1)).sum().backward()
        optimizer.zero_grad()
        with pytest.warns(UserWarning, match=r"'a' was zeroed without an optimizer\.step"):
            model.a.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        model.a.sum().backward()  # an ordinary loop is told nothing


def test_unfreezing_is_refused_on_local_steps_too():
    model = mlp()
    model[0].requires_grad_(False)
    optimizer = sgd_of(model)
    with thinwire.attach(model, optimizer, Strategy(every(2), on=deltas(outer=sgd(1.0)))):
        model[0].requires_grad_(True)
        loss_of(model, 0, 0).backward()
        with pytest.raises(AttachError, match="was frozen"):
            optimizer.step()


def test_a_step_that_does_not_count_is_told():
    model = mlp()
    optimizer = sgd_of(model)
    with thinwire.attach(model, optimizer, Strategy(every(1), on=deltas(outer=sgd(1.0)))) as sync:
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        with pytest.warns(UserWarning, match="does not count"):
            optimizer.step()
        assert sync.step == 0


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
