"""Ranks meet in a store that has seen earlier attempts, and never take a dead rank's name for a
living one's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from torch._C._distributed_c10d import HashStore

from thinwire.errors import FlightError
from thinwire.launch.rendezvous import met

SOON = timedelta(seconds=20)


def together(
    store: Any, world: int, absent: tuple[int, ...] = (), timeout: timedelta = SOON
) -> list[str]:
    ranks = [rank for rank in range(world) if rank not in absent]
    with ThreadPoolExecutor(world) as pool:
        return [
            done.result()
            for done in [pool.submit(met, store, rank, world, timeout) for rank in ranks]
        ]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_every_attempt_has_a_roster_of_its_own(world: int) -> None:
    store = HashStore()
    rosters = []
    for _ in range(3):
        told = together(store, world)
        assert len(set(told)) == 1
        rosters.append(told[0])
    assert len(set(rosters)) == 3


def test_a_rank_that_died_on_its_way_is_replaced() -> None:
    store = HashStore()
    with pytest.raises(FlightError, match="ranks 2 never came"):
        together(store, 3, absent=(2,), timeout=timedelta(seconds=0.5))
    for stale in ("join/2", "join/1"):  # names of ranks that are gone
        store.set(stale, "stale")
    assert len(set(together(store, 3))) == 1


def test_a_stale_name_alone_lets_nobody_go() -> None:
    store = HashStore()
    together(store, 2)
    with pytest.raises(FlightError, match="did not come back"):
        met(store, 0, 2, timedelta(seconds=0.5))
    with pytest.raises(FlightError, match="did not come back"):
        met(store, 1, 2, timedelta(seconds=0.5))
