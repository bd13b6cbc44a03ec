"""The anchor of a rank, and the snapshots that newcomers take."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.quorum.runs import H, Rank, strategy, together
from thinwire.errors import QuorumError
from thinwire.on import nesterov
from thinwire.quorum import rendezvous_store


@pytest.mark.filterwarnings("ignore:round .* closed without", "ignore:rank . came late")
def test_a_rank_that_comes_later_takes_up_the_newest_anchor_and_its_outer_momentum() -> None:
    given, ready, come = strategy(outer=nesterov(0.7, 0.9)), threading.Event(), threading.Event()

    def work(rank: int, store: Any) -> Tensor:
        if rank == 2:
            assert ready.wait(150)
            come.set()
            mine = Rank(store, rank, given, grace_s=0.05, seed=5)
            assert mine.sync.version >= 2
            assert mine.sync.step == mine.sync.version * H
        else:
            mine = Rank(store, rank, given, grace_s=0.05)
            mine.round()
            mine.round()
            ready.set()
            assert come.wait(150)
        with mine.sync as sync:
            while sync.version < 12:
                time.sleep(0.02)
                mine.round()
                sync.check()
            assert bool(sync.buckets[0].state.child("outer")["velocity"].value.any())
            return mine.flat

    flats = together(3, work)
    assert sum(torch.equal(flats[a], flats[b]) for a, b in ((0, 1), (1, 2), (0, 2))) >= 1, (
        "those that ended at the same round"
    )


@pytest.mark.filterwarnings("ignore:round .* closed without", "ignore:rank . came late")
def test_a_rank_that_slept_for_longer_than_contributions_are_kept_takes_a_snapshot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rendezvous_store, "KEEP", 2)
    asleep, awake, done = threading.Event(), threading.Event(), threading.Event()
    ends: list[int] = []

    def work(rank: int, store: Any) -> None:
        mine = Rank(store, rank, grace_s=0.02)
        with mine.sync as sync:
            if rank == 2:
                for _ in range(H - 1):
                    mine.step()
                asleep.set()
                assert awake.wait(150)
                mine.step()
                assert sync.version >= 5
                sync.check()
                done.set()
                return
            assert asleep.wait(150)
            while not ends or sync.version < ends[0]:
                if rank == 0 and done.is_set() and not ends:
                    # set before a round that the other cannot close without this rank, so that
                    # neither is left alone
                    ends.append(sync.version + 1)
                mine.round()
                sync.check()
                if sync.version >= 5:
                    awake.set()

    together(3, work)


def test_whoever_waits_for_an_anchor_that_nobody_serves_is_told() -> None:
    store = dist.HashStore()
    first = Rank(store, 0, quorum=1, world=1, max_world=2, grace_s=0.0)
    for _ in range(10):
        first.round()
    with pytest.raises(QuorumError, match=r"waited 0\.2 s for the newest anchor"):
        Rank(store, 1, quorum=1, world=1, max_world=2, grace_s=0.0, timeout=timedelta(seconds=0.2))
