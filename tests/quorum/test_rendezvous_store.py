"""The store of a quorum: it falls silent, it is gone, or a stranger writes to it. Ranks end with an
error in time, or pass it over."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.engine.models import near
from tests.quorum.runs import PLAIN, START, H, Rank, moved, strategy
from tests.ranks import context
from thinwire.errors import AttachError, DisagreementError, FlightError, QuorumError
from thinwire.quorum import rendezvous_store
from thinwire.quorum.entries import Contribution, pack
from thinwire.what import topk

LIFE = "0123456789ab"
pytestmark = pytest.mark.filterwarnings("ignore:round .* closed without")


def _hold(pipe: Connection) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pipe.send(store.port)
    pipe.recv()


@pytest.fixture
def host() -> Iterator[tuple[int, int]]:
    """A process that holds a store: its number, and the store's port."""
    here, there = context.Pipe()
    process = context.Process(target=_hold, args=(there,), daemon=True)
    process.start()
    assert process.pid is not None
    try:
        assert here.poll(60)
        yield process.pid, here.recv()
    finally:
        process.kill()
        process.join()


def alone(store: Any, **options: Any) -> Rank:
    return Rank(store, 0, **{"world": 1, "quorum": 1, "grace_s": 0.0} | options)


# -- a store that does not answer
# -------------------------------------------------------------------------------------


def test_a_store_that_falls_silent_ends_in_an_error_within_the_timeout(
    host: tuple[int, int],
) -> None:
    pid, port = host
    mine = alone(dist.TCPStore("127.0.0.1", port, is_master=False), timeout=timedelta(seconds=2))
    mine.round()
    os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(
        FlightError,
        match=(
            rf"this rank cannot reach the store at 127\.0\.0\.1:{port}: it gave no answer within "
            r"2 s"
        ),
    ):
        mine.round()
    mine.sync.close()
    assert time.monotonic() - begun < 6


def test_whoever_joins_a_silent_store_is_told(host: tuple[int, int]) -> None:
    pid, port = host
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(FlightError, match="this rank cannot reach the store"):
        alone(store, timeout=timedelta(seconds=2))
    assert time.monotonic() - begun < 6


def test_a_silent_store_ends_a_wait_for_others(host: tuple[int, int]) -> None:
    pid, port = host
    mine = Rank(dist.TCPStore("127.0.0.1", port, is_master=False), 0, timeout=timedelta(seconds=3))
    threading.Timer(0.5, os.kill, (pid, signal.SIGSTOP)).start()
    begun = time.monotonic()
    with pytest.raises(FlightError, match="this rank cannot reach the store"):
        mine.round()  # waits for its quorum
    assert time.monotonic() - begun < 8


# -- what a stranger writes
# -------------------------------------------------------------------------------------------


class Stranger:
    """Somebody who reaches the store and knows the run's keys."""

    def __init__(self, store: Any, mine: Rank) -> None:
        self.store = dist.PrefixStore("thinwire-rounds", store)
        self.start, self.mine = mine.sync.store.start, mine

    def delta(
        self,
        rank: int,
        value: float,
        weight: Any = 1.0,
        began: Any = 0,
        name: str | None = None,
        **head: Any,
    ) -> Contribution:
        """A contribution that moves every weight by `value`; offered with `offer`."""
        payloads = [
            torch.full((part.spec.numel,), value, dtype=part.spec.dtype).view(torch.uint8)
            for bucket in self.mine.sync.buckets
            for part in bucket.slices
        ]
        return self.post(
            name or f"{rank}.{LIFE}.1",
            pack({"rank": rank, "began": began, "weight": weight} | head, payloads),
            began,
        )

    def post(self, name: str, blob: bytes, began: Any = 0) -> Contribution:
        self.store.set(f"c/{name}/0", blob)
        return Contribution(name, len(blob), began)

    def offer(self, entry: Any, round_: int = 0, slot: int = 0) -> None:
        self.store.set(
            f"r/{self.start}/{round_}/{slot}",
            entry if isinstance(entry, str | bytes) else json.dumps(entry),
        )


def joined(**options: Any) -> tuple[Rank, Stranger]:
    store = dist.HashStore()
    mine = alone(store, **options)
    return mine, Stranger(store, mine)


def own_only(mine: Rank) -> bool:
    """Whether a round moved the rank by what it learned itself, and nothing else."""
    return near(mine.round(), START - moved(START, 0)) and mine.sync.members == (0,)


@pytest.mark.parametrize("rank", [77, 1, 10**6, 10**30])
def test_a_contribution_of_a_rank_that_is_none_does_not_count(rank: int) -> None:
    mine, stranger = joined()
    stranger.offer(stranger.delta(rank, 1000.0, weight=1e6))
    assert own_only(mine)


@pytest.mark.filterwarnings("ignore:what the store holds")
@pytest.mark.parametrize(
    "weight",
    [1e6, -1.0, float("nan"), float("inf"), "many", None, True, [1.0], 10**400],
    ids=lambda each: str(each)[:9],
)
def test_a_weight_out_of_bounds_does_not_count(weight: Any) -> None:
    mine, stranger = joined(world=2)
    stranger.offer(stranger.delta(1, 1000.0, weight=weight))
    assert own_only(mine)


def test_a_counter_that_somebody_has_moved_stops_nobody() -> None:
    mine, stranger = joined()
    stranger.store.add(f"r/{stranger.start}/0/come", 2**40)
    stranger.store.add("life/0", 2**40)
    begun = time.monotonic()
    assert own_only(mine)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "entry",
    [
        b"\xff\xfe\x00",
        "",
        "null",
        "[]",
        "{}",
        "[" * 900,
        '["0.0123456789ab.1"]',
        [f"1.{LIFE}.1", -1, 0],
        [f"1.{LIFE}.1", 2**62, 0],
        [f"1.{LIFE}.1", 1e9, 0],
        [f"1.{LIFE}.1", True, 0],
        [f"1.{LIFE}.1", 100, -1],
        [f"1.{LIFE}.1", 100, 5],
        [f"1.{LIFE}.1", 100, "0"],
        ["-1.0123456789ab.1", 100, 0],
        ["../../etc.0123456789ab.1", 100, 0],
        [1, 2, 3],
        "9" * 5000,
    ],
    ids=repr,
)
def test_an_entry_that_is_no_offer_is_passed_over(entry: Any) -> None:
    mine, stranger = joined(world=2)
    stranger.offer(entry)
    assert own_only(mine)


def _head(length: int, head: bytes = b"", rest: bytes = b"") -> bytes:
    return length.to_bytes(8, "little") + head + rest


BLOBS = {
    "no head": b"abc",
    "a head longer than all": _head(2**62, b"{}"),
    "a head that is no JSON": _head(2, b"[["),
    "no tensors": _head(2, b"{}"),
    "a tensor larger than all": pack({}, []).replace(b"[]", b'[["float32",[1099511627776]]]'),
    "a type that is none": _head(46, b'{"tensors": [["_C", [1]]], "rank": 1,"began":0}'[:46]),
    "bytes left over": pack({"rank": 1, "began": 0, "weight": 1.0}, []) + b"12345",
    "too few payloads": pack({"rank": 1, "began": 0, "weight": 1.0}, []),
    "payloads that are no bytes": pack(
        {"rank": 1, "began": 0, "weight": 1.0}, [torch.ones(3), torch.ones(4)]
    ),
    "payloads that are cut": pack(
        {"rank": 1, "began": 0, "weight": 1.0}, [torch.zeros(2, dtype=torch.uint8)] * 2
    ),
    "another rank's": pack(
        {"rank": 0, "began": 0, "weight": 1.0}, [torch.zeros(12, dtype=torch.uint8)] * 2
    ),
}


@pytest.mark.parametrize("name", BLOBS)
def test_a_contribution_that_no_rank_can_have_made_does_not_count_and_a_warning_says_why(
    name: str,
) -> None:
    mine, stranger = joined(world=2)
    stranger.offer(stranger.post(f"1.{LIFE}.1", BLOBS[name]))
    with pytest.warns(UserWarning, match="rank 1's contribution of round 0 does not count"):
        assert own_only(mine)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_do_not_count(value: float) -> None:
    mine, stranger = joined(world=2)
    stranger.offer(stranger.delta(1, value))
    with pytest.warns(UserWarning, match="its values are not finite"):
        assert own_only(mine)


def test_an_offer_without_its_bytes_does_not_count_and_nobody_waits_for_them() -> None:
    mine, stranger = joined(world=2)
    stranger.offer([f"1.{LIFE}.1", 100, 0])
    begun = time.monotonic()
    with pytest.warns(UserWarning, match="its bytes are not there"):
        assert own_only(mine)
    assert time.monotonic() - begun < 5


@pytest.mark.filterwarnings("ignore:what the store holds")
def test_an_offer_twice_counts_once() -> None:
    mine, stranger = joined(world=2)
    offer = stranger.delta(1, 2.0)
    for slot in range(3):
        stranger.offer(offer, slot=slot)
    assert near(mine.round(), START - (moved(START, 0) + 2.0) / 2)
    assert mine.sync.members == (0, 1)


def test_a_round_full_of_entries_is_named() -> None:
    mine, stranger = joined()
    for slot in range(200):
        stranger.offer("[]", slot=slot)
    with pytest.raises(
        FlightError, match=r"round 0 has more than 80 offers .* more than 1 ranks make"
    ):
        mine.round()


@pytest.mark.parametrize(
    "members", ["[", "[]", "{}", "[[1, 2, 3]]", '[["77.0123456789ab.1", 100, 0]]', "[null]"]
)
def test_members_that_no_rank_can_have_written_are_named(members: str) -> None:
    mine, stranger = joined()
    stranger.store.set(f"r/{stranger.start}/0/members", members)
    with pytest.raises(
        FlightError, match=r"under 'r/.*/0/members', which no rank of this run writes"
    ):
        mine.round()


def test_a_round_closed_by_a_stranger_with_nothing_to_read_ends_in_time() -> None:
    mine, stranger = joined(timeout=timedelta(seconds=0.5))
    stranger.store.set(f"r/{stranger.start}/0/members", json.dumps([[f"0.{LIFE}.1", 100, 0]]))
    with pytest.raises(QuorumError, match=r"waited 0\.5 s for the newest anchor"):
        mine.round()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("start", "soon"),
        ("start", "0 77.0123456789ab.1"),
        ("start", "9" * 5000 + " 0.0123456789ab.1"),
        ("floor", "-3"),
        ("floor", "many"),
        ("snapshot", "[0, 1, 2, 3]"),
        ("snapshot", '[0, "1", 0]'),
        ("snapshot", f"[0, {2**60}, 0]"),
        ("snapshot", "["),
        ("facts", "["),
        ("facts", "[]"),
        ("facts", '{"max_weight": "1"}'),
    ],
)
def test_whoever_joins_a_store_that_somebody_else_writes_to_is_told(key: str, value: str) -> None:
    _, stranger = joined()
    stranger.store.set(f"snapshot/{stranger.start}" if key == "snapshot" else key, value)
    with pytest.raises(FlightError, match="something else writes there"):
        alone(stranger.store.underlying_store)


def test_a_snapshot_that_is_announced_and_not_there_ends_in_time() -> None:
    _, stranger = joined(timeout=timedelta(seconds=0.5))
    stranger.store.set(f"snapshot/{stranger.start}", "[5, 100, 0]")
    begun = time.monotonic()
    with pytest.raises(QuorumError, match="no anchor that the store announced"):
        alone(stranger.store.underlying_store, timeout=timedelta(seconds=0.5))
    assert time.monotonic() - begun < 5


def test_a_snapshot_of_other_tensors_is_refused_and_changes_nothing() -> None:
    _, stranger = joined()
    blob = pack({"members": [], "in_time": [], "missed": []}, [torch.ones(3)])
    stranger.store.set(f"s/{stranger.start}/0/0", blob)
    stranger.store.set(f"snapshot/{stranger.start}", json.dumps([0, len(blob), 0]))
    with pytest.raises(
        FlightError, match="the anchor of round 0 is none: it has other tensors than this model"
    ):
        alone(stranger.store.underlying_store)


# -- numbers that ranks agree on
# --------------------------------------------------------------------------------------


def test_a_rank_beyond_the_world_is_refused_unless_all_have_agreed_on_more() -> None:
    store = dist.HashStore()
    with pytest.raises(
        AttachError,
        match=r"rank=3: this run's ranks are below 3\. Where others than the first 3 may come",
    ):
        Rank(store, 3)
    Rank(store, 0, max_world=5)
    Rank(store, 4, max_world=5)
    with pytest.raises(DisagreementError, match=r"max_world differs \(the run: 5; here: 3\)"):
        Rank(store, 1)
    with pytest.raises(AttachError, match="max_world=2: from world to"):
        Rank(dist.HashStore(), 0, max_world=2)


def test_the_greatest_weight_is_the_first_ranks_choice() -> None:
    store = dist.HashStore()
    first = Rank(store, 0, weight=50.0)
    other = Rank(store, 1, weight=1.0)
    for mine in (first, other):
        mine.sync.weigh(50_000.0)
        with pytest.raises(
            AttachError, match=r"weigh\(50001\): the ranks of this run have agreed on at most 50000"
        ):
            mine.sync.weigh(50_001.0)
    with pytest.raises(
        DisagreementError, match=r"max_weight differs \(the run: 50000\.0; here: 7\.0\)"
    ):
        Rank(store, 2, max_weight=7.0)
    with pytest.raises(AttachError, match="max_weight=0: finite, and above 0"):
        Rank(dist.HashStore(), 0, max_weight=0)


def test_rounds_hold_on_to_no_slots_of_earlier_ones() -> None:
    mine = alone(dist.HashStore(), given=strategy(topk(3)))
    for _ in range(2 * rendezvous_store.KEEP):
        mine.round()
    assert len(mine.sync.store._slots[1]) <= 2
    assert not mine.sync.rounds.reader._read
    assert mine.sync.step == 2 * rendezvous_store.KEEP * H
    assert PLAIN.when == mine.sync.strategy.when
