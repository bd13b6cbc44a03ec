"""Ranks compare what they must hold equal, every n steps that they agree on."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import thinwire
from tests.engine.models import WIDTH, loss_of, mlp, train
from tests.engine.test_guards import ranks, sgd_of
from tests.ranks import run_ranks
from thinwire import Strategy
from thinwire.core import Driver
from thinwire.engine.observe import checks
from thinwire.errors import AttachError, DisagreementError, NotLandedError
from thinwire.how import gossip
from thinwire.on import deltas, nesterov, parameters, sgd
from thinwire.when import delayed, every, staggered

MODEL = mlp()
LOCAL = Strategy(every(3), on=deltas(nesterov(0.7, 0.9)))


def broken_at(
    driver: Driver,
    strategy: Strategy,
    check_every: Any,
    step: int,
    steps: int,
    anchor: bool = False,
) -> Any:
    """Train, and flip a bit of rank 1's weights (or anchor) before a step; the step at which that
    was found."""
    model = copy.deepcopy(MODEL)
    optimizer = sgd_of(model)
    with thinwire.attach(
        model, optimizer, strategy, driver=driver, check_every=check_every
    ) as sync:

        def each(done: int) -> None:
            if driver.rank == 1 and done + 1 == step:
                last = list(model.parameters())[-1].data
                if anchor:
                    leaf = sync.buckets[0].state["anchor"]
                    leaf.value = leaf.value.clone()
                    last = leaf.value
                last.view(-1)[-1:].view(torch.int32).bitwise_xor_(1)

        try:
            train(model, optimizer, driver.rank, range(steps), each=each)
        except DisagreementError as error:
            return sync.step, str(error)
        return sync.step, sync.checks.every


@pytest.mark.parametrize("overlap", ["backward", "forward"])
def test_a_flipped_bit_is_found_within_n_steps_on_gradients(overlap: Any) -> None:
    def work(driver: Driver) -> Any:
        return broken_at(driver, Strategy(), 4, 6, 20)

    for step, message in ranks(3, work):
        assert step == 8
        assert "'4.bias' differs at step 8: ranks [1] do not hold rank 0's bits" in message


def test_a_flipped_bit_of_an_anchor_is_found_at_the_landing_after_n_steps() -> None:
    for step, message in ranks(3, lambda driver: broken_at(driver, LOCAL, 4, 4, 20, anchor=True)):
        assert step == 6
        assert "ranks [1] do not hold rank 0's bits" in message


def test_ranks_that_stay_equal_train_on() -> None:
    for strategy in (
        Strategy(),
        Strategy(delayed(1, every(1))),
        LOCAL,
        Strategy(every(2), on=parameters()),
    ):
        for step, every_n in ranks(
            2, lambda driver, strategy=strategy: broken_at(driver, strategy, 1, 99, 6)
        ):
            assert (step, every_n) == (6, 1)


def test_ranks_measure_and_agree_on_n_and_say_so() -> None:
    def work(driver: Driver) -> Any:
        model = copy.deepcopy(MODEL)
        optimizer = sgd_of(model)
        with thinwire.attach(model, optimizer, driver=driver) as sync:
            before = sync.checks.every
            train(model, optimizer, driver.rank, range(12))
            return before, sync.checks.every, str(sync.report())

    found = ranks(3, work)
    assert len({n for _, n, _ in found}) == 1
    for before, n, report in found:
        assert before is None
        assert isinstance(n, int)
        assert f"weights are compared between ranks every {n} steps: " in report


@pytest.mark.parametrize(
    ("hashing", "telling", "stepping"),
    [([2.0, 1.5], [1.0, 3.0], [100.0, 50.0]), ([1e-4] * 2, [3e-4] * 2, [0.004] * 2)],
)
def test_n_is_such_that_comparing_costs_less_than_half_a_percent(
    hashing: list[float], telling: list[float], stepping: list[float]
) -> None:
    n, cost, step = checks.steps_between(hashing, telling, stepping)
    assert (cost, step) == (
        max(hashing) + min(telling),
        min(stepping),
    )  # who waits for a slow rank spends nothing
    assert cost / (n * step) <= checks.MOST < cost / (n / 2.5 * step)


def test_ranks_of_different_machines_do_not_compare_by_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = iter(["one CPU", "another CPU", "one CPU", "another CPU"])
    monkeypatch.setattr(checks, "_machine", lambda _: next(names))

    def work(driver: Driver) -> Any:
        model = copy.deepcopy(MODEL)
        optimizer = sgd_of(model)
        with thinwire.attach(model, optimizer, driver=driver) as sync:
            train(model, optimizer, driver.rank, range(12))
            return sync.checks.every, str(sync.report())

    for n, report in ranks(2, work):
        assert n is None
        assert "weights are not compared: ranks compute on different machines" in report


@pytest.mark.parametrize(
    "strategy",
    [
        Strategy(every(1), how=gossip(), on=parameters()),
        Strategy(staggered(2, every(4)), on=parameters()),
    ],
    ids=repr,
)
def test_strategies_whose_ranks_are_never_equal_refuse_n_and_are_let_be_by_default(
    strategy: Strategy,
) -> None:
    def work(driver: Driver) -> Any:
        model = copy.deepcopy(MODEL)
        optimizer = sgd_of(model)
        with pytest.raises(AttachError, match=r"check_every=3: .* ranks never hold equal"):
            thinwire.attach(model, optimizer, strategy, driver=driver, check_every=3)
        with thinwire.attach(model, optimizer, strategy, driver=driver) as sync:
            train(model, optimizer, driver.rank, range(12))
            return sync.checks.every

    assert ranks(2, work) == [None, None]


def test_what_is_no_number_of_steps_is_refused() -> None:
    model = copy.deepcopy(MODEL)
    with pytest.raises(AttachError, match="check_every=0: at least 1, or None, or 'auto'"):
        thinwire.attach(model, sgd_of(model), check_every=0)


def test_different_n_is_refused() -> None:
    def work(driver: Driver) -> None:
        model = copy.deepcopy(MODEL)
        thinwire.attach(model, sgd_of(model), driver=driver, check_every=1 + driver.rank)

    for error in ranks(2, work):
        assert isinstance(error, DisagreementError)
        assert "check_every differs" in str(error)


# -- checksums
# --------------------------------------------------------------------------------------------------


def _bent_while_frozen(rank: int) -> str:
    model = mlp()
    model[0].requires_grad_(False)
    with thinwire.attach(model, sgd_of(model)) as sync:
        sync.check()
        with torch.no_grad():
            model[0].bias += rank
        with pytest.raises(DisagreementError) as error:
            sync.check()
        return str(error.value)


def test_check_looks_at_frozen_parameters():
    for said in run_ranks(2, _bent_while_frozen):
        assert "'0.bias' differs" in said


def _norm_between_landings(rank: int, strategy: Strategy) -> int:
    model = nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 5))
    optimizer = sgd_of(model)
    with thinwire.attach(model, optimizer, strategy) as sync:
        sync.check()
        for step in range(3):
            loss_of(model, step, rank).backward()
            if strategy.on.clock == "step" or step % 2:
                optimizer.step()
            sync.check()
        return sync.step


@pytest.mark.parametrize(
    "strategy",
    [Strategy(every(2)), Strategy(every(2), on=deltas(outer=sgd(1.0)))],
    ids=["gradients", "deltas"],
)
def test_check_between_landings_leaves_buffers_out(strategy):
    assert run_ranks(2, _norm_between_landings, strategy) == [3, 3]


def _fragments(rank: int) -> None:
    model = mlp()
    optimizer = sgd_of(model)
    with thinwire.attach(
        model, optimizer, Strategy(staggered(2, every(4)), on=parameters())
    ) as sync:
        train(model, optimizer, rank, range(2))
        with pytest.raises(NotLandedError):
            sync.check()


def test_check_knows_that_one_fragment_is_not_all():
    run_ranks(2, _fragments)
