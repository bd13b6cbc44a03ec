"""Other libraries' conventions of which step of a period talks, written as a phase."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.model_averaging import averagers

import thinwire
from tests.engine.models import loss_of, mlp, weights_of
from tests.ranks import run_ranks
from tests.threads import on_threads
from thinwire import Strategy
from thinwire.core import Driver, Schedule
from thinwire.errors import AttachError, CheckpointError, StrategyError
from thinwire.how import gather
from thinwire.on import deltas, gradients, nesterov, parameters
from thinwire.what import feedback, topk
from thinwire.when import delayed, every, staggered, warmup

START = mlp()


@pytest.mark.parametrize(("warm", "period"), [(3, 4), (0, 4), (5, 2), (1, 7)])
def test_torchs_post_local_sgd_averages_at_the_first_step_after_its_warm_up(
    monkeypatch: Any, warm: int, period: int
) -> None:
    averaged: list[int] = []
    monkeypatch.setattr(averagers.ModelAverager, "__init__", _without_group)
    averager = averagers.PeriodicModelAverager(period, warm)
    monkeypatch.setattr(
        averagers.utils,
        "average_parameters_or_parameter_groups",
        lambda *_: averaged.append(averager.step),
    )
    for _ in range(30):
        averager.average_parameters([])

    def talks(when: Schedule) -> list[int]:
        return [step for step in range(30) if step >= warm and when.tick(step, 1).land]

    assert averaged == talks(warmup(warm, every(period, phase=0)))
    assert averaged[:3] == [warm, warm + period, warm + 2 * period]
    assert talks(warmup(warm, every(period)))[:2] == [warm + period - 1, warm + 2 * period - 1], (
        "the default: whole rounds"
    )


def _without_group(self: Any, _: Any) -> None:
    self.process_group, self.step = object(), 0


def torchft_events(
    every_n: int, fragments: int, delay: int, steps: int
) -> list[tuple[int, str, int]]:
    """(step from 0, what, fragment), by torchft 0.2.0's count: `DiLoCo._step_post_hook` in
    local_sgd.py."""
    events, local, synced = [], 0, 0
    sync_every = every_n // fragments
    for step in range(steps):
        local += 1
        if local == sync_every - delay:
            events.append((step, "launch", synced % fragments))
        if local == sync_every:
            events.append((step, "land", synced % fragments))
            local, synced = 0, synced + 1
    return events


@pytest.mark.parametrize(
    ("n", "fragments", "tau"), [(6, 1, 2), (6, 1, 0), (12, 3, 1), (10, 2, 4), (8, 4, 0)]
)
def test_torchfts_diloco_lands_where_a_period_ends(n: int, fragments: int, tau: int) -> None:
    inner = every(n, phase=n - 1 - tau)
    schedule = delayed(tau, staggered(fragments, inner) if fragments > 1 else inner)
    ours = []
    for step in range(3 * n):
        tick = schedule.tick(step, fragments)
        ours += [(step, "launch", bucket) for bucket in tick.launch] + [
            (step, "land", bucket) for bucket in tick.land
        ]
    assert ours == torchft_events(n, fragments, tau, 3 * n)


def test_torchfts_golden_steps() -> None:
    """H = 6 and a delay of 2: launched at 3, 9, 15, landed at 5, 11, 17; without the phase at 5,
    11, 17 and 7, 13, 19."""
    golden, plain = delayed(2, every(6, phase=3)), delayed(2, every(6))
    assert [step for step in range(20) if golden.tick(step, 1).launch] == [3, 9, 15]
    assert [step for step in range(20) if golden.tick(step, 1).land] == [5, 11, 17]
    assert [step for step in range(20) if plain.tick(step, 1).launch] == [5, 11, 17]
    assert [step for step in range(20) if plain.tick(step, 1).land] == [7, 13, 19]


def test_a_phase_of_fragments_moves_all_of_them() -> None:
    plain = [staggered(3, every(7)).tick(step, 3).launch for step in range(28)]
    early = [staggered(3, every(7, phase=4)).tick(step, 3).launch for step in range(28)]
    assert early[:-2] == plain[2:]


# -- in training
# --------------------------------------------------------------------------------------------------


def _local_sgd(rank: int) -> tuple[list[Tensor], list[Tensor]]:
    """torch's averager and ours on the same model and batches; two ranks, so that halves are
    exact."""
    theirs = copy.deepcopy(START)
    optimizer = torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9)
    averager = averagers.PeriodicModelAverager(period=4, warmup_steps=0)
    expected, seen = [], []
    for step in range(10):
        loss_of(theirs, step, rank).backward()
        optimizer.step()
        averager.average_parameters(theirs.parameters())
        optimizer.zero_grad()
        expected.append(weights_of(theirs))
    model = copy.deepcopy(START)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with thinwire.attach(
        model, optimizer, Strategy(every(4, phase=0), on=parameters()), bucket_bytes=2000
    ):
        for step in range(10):
            loss_of(model, step, rank).backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append(weights_of(model))
    dist.barrier()
    return expected, seen


def test_torchs_local_sgd_bit_for_bit() -> None:
    for expected, seen in run_ranks(2, _local_sgd):
        assert all(torch.equal(a, b) for a, b in zip(expected, seen, strict=True))


SPARSE = feedback(topk(0.2))
PHASED = {
    "accumulation": Strategy(every(3, phase=0), SPARSE, gather(), gradients()),
    "local SGD": Strategy(every(4, phase=1), on=parameters()),
    "after a warm-up": Strategy(warmup(2, every(4, phase=0)), on=parameters()),
    "as torchft": Strategy(delayed(2, every(5, phase=2)), SPARSE, gather(), deltas(nesterov(0.6))),
    "fragments": Strategy(
        delayed(1, staggered(2, every(6, phase=4))), SPARSE, gather(), deltas(nesterov(0.6))
    ),
}


def trained(
    driver: Driver,
    strategy: Strategy,
    steps: range,
    kept: dict[int, Any],
    weights: Tensor | None = None,
) -> Tensor:
    """Train; take up what `kept` holds of this rank, and leave there what is to be taken up."""
    model = copy.deepcopy(START)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(model, optimizer, strategy, driver=driver, bucket_bytes=2000) as sync:
        if (held := kept.get(driver.rank)) is not None:
            model.load_state_dict(held["model"])
            sync.load_state_dict(held["sync"])
        for step in steps:
            loss_of(model, step, driver.rank).backward()
            if not sync.accumulating:
                optimizer.step()
                optimizer.zero_grad()
        kept[driver.rank] = {"model": copy.deepcopy(model.state_dict()), "sync": sync.state_dict()}
        return weights_of(model)


@pytest.mark.parametrize("strategy", PHASED.values(), ids=PHASED)
@pytest.mark.parametrize("cut", [4, 7])
def test_a_run_resumes_within_its_phase(strategy: Strategy, cut: int) -> None:
    if strategy is PHASED["accumulation"] and cut % 3 != 1:
        cut = 7  # between two rounds: within one, .grad holds a sum that no state keeps
    whole = on_threads(2, lambda driver: trained(driver, strategy, range(16), {}))
    kept: dict[int, Any] = {}
    on_threads(2, lambda driver: trained(driver, strategy, range(cut), kept))
    resumed = on_threads(2, lambda driver: trained(driver, strategy, range(cut, 16), kept))
    for rank in range(2):
        assert torch.equal(resumed[rank], whole[rank])


def test_a_state_of_another_phase_is_of_another_strategy() -> None:
    kept: dict[int, Any] = {}
    on_threads(1, lambda driver: trained(driver, PHASED["accumulation"], range(4), kept))
    other = Strategy(every(3, phase=1), SPARSE, gather(), gradients())
    with pytest.raises(CheckpointError, match="the state is of another strategy"):
        raise on_threads(1, lambda driver: trained(driver, other, range(4, 6), kept))[0]


def test_an_accumulation_begins_with_a_short_round() -> None:
    """Its optimiser steps where a mean lands, and nowhere else."""
    model = copy.deepcopy(START)
    with thinwire.attach(
        model, torch.optim.SGD(model.parameters(), 0.1), Strategy(every(3, phase=0))
    ) as sync:
        lands = []
        for step in range(8):
            loss_of(model, step, 0).backward()
            lands.append(not sync.accumulating)
            if lands[-1]:
                model.zero_grad()
    assert lands == [True, False, False] * 2 + [True, False]


def test_a_quorum_has_whole_rounds() -> None:
    strategy = Strategy(every(4, phase=0), SPARSE, gather(), deltas())
    model = copy.deepcopy(START)
    with pytest.raises((AttachError, StrategyError), match="without a phase"):
        thinwire.join(
            model,
            torch.optim.SGD(model.parameters(), 0.1),
            strategy,
            store=dist.HashStore(),
            rank=0,
            world=1,
            quorum=1,
        )
