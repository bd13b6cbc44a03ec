"""Local steps by speed: who takes which, what each weighs, and that nobody disagrees."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import thinwire
from tests.engine import models
from tests.engine.models import built, near, noise
from tests.ranks import run_ranks
from tests.threads import on_threads
from thinwire import Strategy
from thinwire.core import Driver
from thinwire.engine import pace
from thinwire.errors import AttachError, NotLandedError
from thinwire.on import deltas, nesterov, parameters, sgd
from thinwire.when import by_speed, delayed, every, growing, staggered

OWN = [noise(7, key=20 + rank) for rank in range(3)]
STARTS = [noise(3, key=1), noise(4, key=2)]
RATE = 0.1
watch = threading.local()


@pytest.fixture(autouse=True)
def _a_clock_for_each_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "now", lambda: getattr(watch, "seconds", 0.0))


def train(
    driver: Driver,
    strategy: Strategy,
    seconds: list[list[float]],
    steps: range,
    state: Any = None,
    **options: Any,
) -> dict[str, Any]:
    """Descend to a minimum of the rank's own; a step of round r lasts seconds[r][rank]."""
    model = nn.ParameterList(nn.Parameter(start.clone()) for start in STARTS)
    optimizer, taken, paces = torch.optim.SGD(model.parameters(), RATE), [], []
    with thinwire.attach(
        model, optimizer, strategy, driver=driver, bucket_bytes=24, **options
    ) as sync:
        if state is not None:
            sync.load_state_dict(state[driver.rank])
        assert sync.pace is not None
        for step in steps:
            assert sync.step == step
            paces.append(list(sync.pace.steps))
            if sync.rests():
                sync.skip_step()
                continue
            taken.append(step)
            flat = torch.cat([param.reshape(-1) for param in model])
            (0.5 * (flat - OWN[driver.rank]).square().sum()).backward()
            watch.seconds = (
                getattr(watch, "seconds", 0.0) + seconds[step // strategy.when.period][driver.rank]
            )
            optimizer.step()
            optimizer.zero_grad()
        if not sync.steps_since_sync:
            sync.check()
        saved = sync.state_dict()
        with sync.common_weights():
            common = torch.cat([param.detach().reshape(-1) for param in model])
        return {"taken": taken, "paces": paces, "common": common, "state": saved}


def ran(results: dict[int, Any]) -> list[dict[str, Any]]:
    for result in results.values():
        if isinstance(result, BaseException):
            raise result
    return [results[rank] for rank in sorted(results)]


WEIGHTS = [1.0, 3.0, 2.0]


@pytest.mark.parametrize(
    "on", [deltas(sgd(1.0)), parameters(), deltas(nesterov(0.7, 0.9))], ids=repr
)
def test_slower_ranks_take_fewer_steps_and_weigh_by_what_they_took(on: deltas | parameters) -> None:
    """Batches of 1, 3 and 2 rows; by the tokens of a round the mean weighs 8 · 1, 4 · 3 and 2 · 2,
    as pooled."""
    strategy, speeds = Strategy(by_speed(every(8)), on=on), [[1.0, 2.0, 4.0]] * 3
    seen = ran(
        on_threads(
            3,
            lambda driver: train(driver, strategy, speeds, range(24), weight=WEIGHTS[driver.rank]),
        )
    )
    assert [len(rank["taken"]) for rank in seen] == [24, 8 + 4 + 4, 8 + 2 + 2]
    assert seen[2]["taken"] == [*range(8), 11, 15, 19, 23]

    anchor, outer = torch.cat(STARTS), torch.nn.Parameter(torch.cat(STARTS))
    step_outer = torch.optim.SGD([outer], 0.7, momentum=0.9, nesterov=True)
    for steps in ((8, 8, 8), (8, 4, 2), (8, 4, 2)):
        tokens = [count * weight for count, weight in zip(steps, WEIGHTS, strict=True)]
        ends = [
            (1 - RATE) ** count * (anchor - own) + own
            for count, own in zip(steps, OWN, strict=True)
        ]
        mean = sum(share * end for share, end in zip(tokens, ends, strict=True)) / sum(tokens)
        if on == deltas(nesterov(0.7, 0.9)):
            outer.grad = anchor - mean
            step_outer.step()
            anchor = outer.detach().clone()
        else:
            anchor = mean
    assert all(near(rank["common"], anchor) for rank in seen)


def test_a_pace_follows_the_speed_from_the_landing_on_and_all_know_it() -> None:
    strategy = Strategy(
        by_speed(delayed(2, staggered(2, every(6)))), on=deltas(nesterov(0.6), alpha=0.5)
    )
    speeds = [[1.0, 3.0, 1.0], [1.0, 3.0, 1.0], [2.0, 1.0, 1.0], [2.0, 1.0, 1.0]]
    seen = ran(on_threads(3, lambda driver: train(driver, strategy, speeds, range(24))))
    assert seen[0]["paces"] == seen[1]["paces"] == seen[2]["paces"]
    assert seen[0]["paces"][4] == [6, 6, 6]
    assert seen[0]["paces"][5] == [6, 2, 6], "bucket 0 launches at step 2 and lands at 4"
    assert seen[0]["paces"][23] == [3, 6, 6]
    assert torch.equal(seen[0]["common"], seen[1]["common"])


def test_shares_of_a_launch_sum_to_one_whatever_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[tuple[int, int], list[float]] = {}
    share = pace.Pace.weight

    def noting(self: pace.Pace, bucket: int, shares: Any) -> float:
        mine = share(self, bucket, shares)
        told.setdefault(
            (bucket, len([key for key in told if key[0] == bucket and len(told[key]) == 3])), []
        ).append(mine)
        return mine

    monkeypatch.setattr(pace.Pace, "weight", noting)
    strategy = Strategy(
        by_speed(delayed(1, staggered(2, every(5)))), on=deltas(sgd(0.9), alpha=0.2)
    )
    speeds = [[1.0, 1.7, 5.0], [1.0, 2.5, 1.1], [3.0, 1.0, 1.0], [1.0, 1.0, 9.0]]
    ran(
        on_threads(
            3,
            lambda driver: train(driver, strategy, speeds, range(20), weight=WEIGHTS[driver.rank]),
        )
    )
    rounds = [shares for shares in told.values() if len(shares) == 3]
    assert len(rounds) >= 7
    assert all(abs(sum(shares) - 1) < 1e-12 for shares in rounds)


def test_resumed_is_never_stopped() -> None:
    strategy = Strategy(by_speed(delayed(2, every(6))), on=deltas(nesterov(0.6), alpha=0.5))
    speeds = [[1.0, 3.0, 1.0], [1.0, 2.0, 1.0], [2.0, 1.0, 1.0], [2.0, 1.0, 1.0]]

    def parts(driver: Driver) -> Any:
        return train(driver, strategy, speeds, range(13))

    whole = ran(on_threads(3, lambda driver: train(driver, strategy, speeds, range(24))))
    first = ran(
        on_threads(3, parts)
    )  # stopped while the news of a round is heard and does not hold yet
    state = [rank["state"] for rank in first]
    second = ran(
        on_threads(3, lambda driver: train(driver, strategy, speeds, range(13, 24), state))
    )
    for rank in range(3):
        assert second[rank]["paces"] == whole[rank]["paces"][13:]
        assert torch.equal(second[rank]["common"], whole[rank]["common"])


def steps_taken(driver: Driver, steps: int) -> None:
    """A loop that never asks whether it rests."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    thinwire.attach(model, optimizer, Strategy(by_speed(every(4)), on=deltas()), driver=driver)
    for _ in range(steps):
        model(torch.ones(1, 2)).sum().backward()
        watch.seconds = getattr(watch, "seconds", 0.0) + 1 + driver.rank
        optimizer.step()
        optimizer.zero_grad()


def test_a_loop_that_does_not_ask_is_told() -> None:
    results = on_threads(2, lambda driver: steps_taken(driver, 8 if driver.rank else 4))
    assert isinstance(results[1], NotLandedError)
    assert "takes 2 of 4 steps. Begin the loop with `if sync.rests()" in str(results[1])


def _measured(rank: int) -> tuple[list[int], Tensor, int]:
    pace.now = time.perf_counter
    torch.manual_seed(rank)
    model, taken = nn.Linear(8, 8), 0
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(
        model, optimizer, Strategy(by_speed(every(10)), on=deltas(sgd(1.0)))
    ) as sync:
        for _ in range(30):
            if sync.rests():
                sync.skip_step()
                continue
            model(torch.randn(4, 8)).square().sum().backward()
            time.sleep(0.04 if rank else 0.004)
            optimizer.step()
            optimizer.zero_grad()
            taken += 1
        sync.check()
        assert sync.pace is not None
        return sync.pace.steps, model.weight.detach().clone(), taken


def test_over_gloo_a_rank_that_is_slow_by_the_clock_takes_fewer_steps() -> None:
    (fast, weight, all_of_them), (slow, same, some) = run_ranks(2, _measured)
    assert torch.equal(weight, same)
    assert fast == slow
    assert all_of_them == 30
    assert fast[1] < 6
    assert some < 25


def test_by_speed_wants_every_step_that_it_counts() -> None:
    def idle(driver: Driver) -> None:
        _, _, sync = built(Strategy(by_speed(every(4)), on=parameters()), driver)
        with sync:
            sync.skip_step()

    for error in on_threads(2, idle).values():
        assert isinstance(error, NotLandedError)
        assert "was skipped by a rank that takes it" in str(error)


def test_a_launch_after_steps_of_weightless_ranks_alone_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lone(driver: Driver) -> None:
        model, optimizer, sync = built(
            Strategy(by_speed(growing(2, 8, rounds=3)), on=deltas()),
            driver,
            weight=1.0 - driver.rank,
        )
        assert sync.pace is not None
        with sync:
            sync.pace.steps = [1, 8]  # as if rank 0 had been found to be eight times as slow
            for step in range(2):
                if sync.rests():
                    sync.skip_step()
                else:
                    models.train(model, optimizer, driver.rank, range(step, step + 1))

    for error in on_threads(2, lone).values():
        assert isinstance(error, AttachError)
        assert "no rank of weight above 0 has taken a step" in str(error)
