"""A rank of a large world learns a few addresses at the start, and the others when it asks."""

import threading
from typing import Any

import torch.distributed as dist

from thinwire.drive.addresses import Addresses
from thinwire.drive.asks import Asks
from thinwire.drive.beacon import Beacon


def beacon(rank: int) -> Beacon:
    return Beacon("127.0.0.1", "secret", lambda: {"rank": rank}, lambda _: {}, lambda _: None)


def known_by(rank: int, world: int, store: Any, host: int | None = 0) -> Addresses:
    return Addresses(Asks("a test", 10.0), store, "secret", rank, world, host)


def test_all_of_a_small_world_and_few_of_a_large_one_are_known_at_the_start() -> None:
    store = dist.HashStore()
    assert sorted(known_by(2, 5, store).first) == [0, 1, 3, 4]
    large = known_by(500, 8192, store).first
    assert large[0] == 0
    assert {501, 508, 516, 532, 500 + 4096} <= set(large)
    assert len(large) < 25


def test_an_address_is_learnt_when_it_is_asked() -> None:
    store, world = dist.HashStore(), 100
    beacons = {rank: beacon(rank) for rank in (0, 50)}
    for rank in range(world):
        address = beacons[rank].address if rank in beacons else "nowhere"
        store.set(f"beacon/{rank}", address)
    mine = known_by(1, world, store)
    mine.meet(threading.Event(), 0.5)
    assert 50 not in mine.by_rank
    answers = mine.ask([0, 50, 60])
    assert {rank: state for rank, (state, _) in answers.items()} == {
        0: "answers",
        50: "answers",
        60: "unknown",
    }
    assert answers[50][1] == {"rank": 50}
    assert mine.met == {0, 50}
    for each in beacons.values():
        each.close()
