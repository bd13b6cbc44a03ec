"""Quorums that go on from checkpoints in a new store: one run on a board, and newcomers take its
newest anchor, at any round."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.quorum.runs import H, Rank, strategy, together
from thinwire.errors import CheckpointError, DisagreementError
from thinwire.on import nesterov
from thinwire.quorum.rendezvous_store import poll
from thinwire.what import feedback, topk

GIVEN = strategy(feedback(topk(2)), nesterov(0.6, 0.9))
State = dict[str, Tensor]

pytestmark = pytest.mark.filterwarnings("ignore:round .* closed without", "ignore:rank . came late")


def new(store: Any, rank: int, quorum: int = 1, **options: Any) -> Rank:
    return Rank(store, rank, GIVEN, **{"quorum": quorum, "grace_s": 0.05, "max_world": 3} | options)


def anchor(mine: Rank) -> Tensor:
    return torch.cat([bucket.state["anchor"].value for bucket in mine.sync.buckets])


def alone(*versions: int) -> list[State]:
    """States of rank 0 at these rounds of one run."""
    mine, states = new(dist.HashStore(), 0, seed=4), []
    for version in versions:
        while mine.sync.version < version:
            mine.round()
        states.append(mine.sync.state_dict())
    return states


def of(rank: int, state: State) -> State:
    """What rank 0 has saved, as another's."""
    return {key.replace("rank0|", f"rank{rank}|", 1): value for key, value in state.items()}


def go_on_as_one(*ranks: Rank) -> None:
    """With a quorum of 1: the first closes a round, the others are late to it, and all hold its
    anchor then."""
    for _ in range(2):
        for mine in ranks:
            mine.round()
        assert len({mine.sync.version for mine in ranks}) == 1
        assert all(torch.equal(anchor(mine), anchor(ranks[0])) for mine in ranks)


@pytest.mark.parametrize("closed", [0, 1, 6])
@pytest.mark.parametrize("version", [0, 3, 10])
@pytest.mark.parametrize("quorum", [1, 2])
def test_a_newcomer_after_a_resume_takes_the_newest_anchor(
    quorum: int, version: int, closed: int
) -> None:
    def first(rank: int, store: Any) -> State:
        mine = new(store, rank, quorum, grace_s=30.0, world=quorum, seed=4)
        while mine.sync.version < version:
            mine.round()
        mine.step()
        return mine.sync.state_dict()

    saved = together(quorum, first)
    there = threading.Barrier(quorum + 1, timeout=150)

    def second(rank: int, store: Any) -> tuple[int, Tensor]:
        if rank == quorum:
            there.wait()
            mine = new(store, rank, quorum, world=quorum)
        else:
            mine = new(store, rank, quorum, world=quorum)
            mine.sync.load_state_dict(saved[rank])
            while mine.sync.version < version + closed:
                mine.round()
            there.wait()
        came = mine.sync.version, anchor(mine)
        there.wait()
        with mine.sync as sync:
            while sync.version < version + closed + 3:
                mine.round()
                sync.check()
        return came

    *others, (came, taken) = together(quorum + 1, second)
    assert came == version + closed
    assert all(torch.equal(taken, held) for _, held in others)


def test_a_newcomer_makes_the_quorum_of_those_that_resumed() -> None:
    (state,) = alone(3)

    def work(thread: int, store: Any) -> Tensor:
        if thread == 0:
            mine = new(store, 0, 2)
            mine.sync.load_state_dict(state)
            resumed.set()
        else:
            assert resumed.wait(150)
            mine = new(store, 2, 2)
        mine.round()
        mine.sync.check()
        assert (mine.sync.version, mine.sync.members) == (4, (0, 2))
        return mine.flat

    resumed = threading.Event()
    zero, two = together(2, work)
    assert torch.equal(zero, two)


@pytest.mark.parametrize("version", [0, 3])
def test_who_came_before_the_resume_goes_over_to_it(version: int) -> None:
    (state,) = alone(version)
    store = dist.HashStore()
    before, resumed = new(store, 2), new(store, 0)
    for _ in range(H - 1):
        before.step()
    resumed.sync.load_state_dict(state)
    with pytest.warns(
        UserWarning,
        match=f"rank 2 goes over to a checkpoint that another rank has loaded, of round {version}",
    ):
        before.step()
    assert before.sync.step == version * H
    assert torch.equal(anchor(before), anchor(resumed))
    go_on_as_one(before, resumed)


@pytest.mark.filterwarnings("ignore:rank 1 goes over")
@pytest.mark.parametrize("version", [0, 3])
def test_who_waits_for_a_quorum_goes_over_to_a_resume(version: int) -> None:
    """What it had offered to the round that nobody closed is of another anchor, and does not
    count."""
    (state,) = alone(version)

    def work(rank: int, store: Any) -> Tensor:
        mine = new(store, rank, 2)
        if rank == 0:
            assert poll(lambda: bool(mine.sync.store.entered(0)), 150)
            mine.sync.load_state_dict(state)
            expected.append(anchor(mine))
        else:
            mine.round()
            assert mine.sync.version == version
            assert torch.equal(anchor(mine), expected[0])
        while mine.sync.version < version + 2:
            mine.round()
            mine.sync.check()
        return mine.flat

    expected: list[Tensor] = []
    zero, one = together(2, work)
    assert torch.equal(zero, one)


@pytest.mark.parametrize("newest_first", [False, True])
def test_of_several_checkpoints_the_run_goes_on_from_the_newest(newest_first: bool) -> None:
    (old, newest), store = alone(3, 4), dist.HashStore()
    zero, one = new(store, 0), new(store, 1)
    if newest_first:
        one.sync.load_state_dict(of(1, newest))
        with pytest.warns(
            UserWarning,
            match="rank 0 loaded round 3, and the run in this store goes on from round 4",
        ):
            zero.sync.load_state_dict(old)
    else:
        zero.sync.load_state_dict(old)
        one.sync.load_state_dict(of(1, newest))
        with pytest.warns(
            UserWarning,
            match="rank 0 goes over to a checkpoint that another rank has loaded, of round 4",
        ):
            zero.round()
    newcomer = new(store, 2)
    assert [mine.sync.version for mine in (zero, one, newcomer)] == [4, 4, 4]
    go_on_as_one(zero, newcomer, one)


def test_a_checkpoint_older_than_the_run_takes_its_newest_anchor() -> None:
    """Also such as lie between where the run began here and where it is: its rounds went otherwise
    than those of the checkpoint."""
    states, store = alone(3, 4), dist.HashStore()
    resumed, late = new(store, 0), new(store, 1)
    resumed.sync.load_state_dict(states[0])
    resumed.round()
    resumed.round()
    with pytest.warns(
        UserWarning, match="rank 1 loaded round 4, and the run in this store goes on from round 5"
    ):
        late.sync.load_state_dict(of(1, states[1]))
    assert (late.sync.version, late.sync.step, late.sync.steps_since_sync) == (5, 5 * H, 0)
    go_on_as_one(resumed, late)


def test_a_checkpoint_newer_than_a_run_under_way_is_refused() -> None:
    (state,), store = alone(3), dist.HashStore()
    afresh, other = new(store, 0), new(store, 1)
    afresh.round()
    with pytest.raises(
        CheckpointError,
        match="state is of round 3, and the run in this store has come to round 1 without it",
    ):
        other.sync.load_state_dict(of(1, state))
    go_on_as_one(afresh, other)


def test_a_newcomer_makes_the_quorum_of_one_who_waits_with_an_anchor_that_the_store_has_not() -> (
    None
):
    """After more rounds than contributions are kept of: the one who waits for a quorum puts up what
    the newcomer waits for."""

    def work(rank: int, store: Any) -> None:
        mine = new(store, rank, 2, world=2)
        for _ in range(10):
            mine.round()
        if rank == 1:
            mine.sync.close()
            assert poll(lambda: bool(mine.sync.store.entered(10)), 150)
            mine = new(store, 1, 2, world=2, timeout=timedelta(seconds=20))
            assert mine.sync.version == 10
        mine.round()
        assert (mine.sync.version, mine.sync.members) == (11, (0, 1))
        mine.sync.check()

    together(2, work)


def test_a_rank_beyond_the_world_has_its_own_state_back() -> None:
    mine = new(dist.HashStore(), 2, world=2, seed=4)
    mine.round()
    mine.step()
    again = new(dist.HashStore(), 2, world=2)
    again.sync.load_state_dict(mine.sync.state_dict())
    for both in (mine, again):
        both.step()
    assert torch.equal(again.flat, mine.flat)


def test_anchors_that_differ_are_found() -> None:
    store = dist.HashStore()
    one, other = Rank(store, 0), Rank(store, 1)
    one.sync.check()
    other.sync.buckets[0].state["anchor"].value = other.sync.buckets[0].state["anchor"].value + 1
    with pytest.raises(
        DisagreementError, match=r"'1' differs after 0 rounds: rank 1 has not rank 0's bits"
    ):
        other.sync.check()


def test_a_checkpoint_goes_on_in_a_new_store() -> None:
    given = strategy(feedback(topk(2)), nesterov(0.6, 0.9))

    def whole(rank: int, store: Any) -> Tensor:
        mine = Rank(store, rank, given)
        with mine.sync:
            for _ in range(5):
                mine.round()
        return mine.flat

    def first(rank: int, store: Any) -> Any:
        mine = Rank(store, rank, given)
        with mine.sync as sync:
            for _ in range(2):
                mine.round()
            mine.step()
            return sync.state_dict()

    saved = together(3, first)

    def second(rank: int, store: Any) -> Tensor:
        mine = Rank(store, rank, given, seed=9)
        with mine.sync as sync:
            sync.load_state_dict(saved[rank])
            assert (sync.version, sync.step, sync.steps_since_sync) == (2, 2 * H + 1, 1)
            for _ in range(3 * H - 1):
                mine.step()
            sync.check()
        return mine.flat

    assert all(
        torch.equal(a, b) for a, b in zip(together(3, whole), together(3, second), strict=True)
    )
