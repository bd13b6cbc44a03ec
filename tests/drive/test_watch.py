"""Heartbeats and beacons: who is called lost, and who is not, whatever the store does."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
import torch.distributed as dist

import thinwire
from tests.engine.models import mlp, train
from tests.ranks import context, run_ranks
from thinwire.drive import watch
from thinwire.drive.addresses import Addresses
from thinwire.drive.blame import Diagnosis
from thinwire.drive.watch import Watch
from thinwire.errors import FlightError, RankLostError


def until(true: Callable[[], bool], limit_s: float = 30.0) -> None:
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < limit_s
        time.sleep(0.02)


@pytest.fixture
def watches() -> Iterator[Callable[..., list[Watch]]]:
    """Watches of several ranks in this process, that know one another's beacons."""
    made: list[Watch] = []

    def make(store: Any, ranks: int, world: int | None = None, **options: Any) -> list[Watch]:
        new = [
            Watch(store(rank) if callable(store) else store, rank, world or ranks, **options)
            for rank in range(ranks)
        ]
        made.extend(new)
        return new

    yield make
    for each in made:
        each.close()


def _living(pipe: Connection, rank: int, world: int, port: int) -> None:
    """A rank of a process of its own; without a port it holds the store itself."""
    store = dist.TCPStore("127.0.0.1", port, is_master=not port, wait_for_workers=False)
    pipe.send(store.port)
    mine = Watch(store, rank, world)
    pipe.recv()
    mine.close()


@pytest.fixture
def process() -> Iterator[Callable[..., tuple[int, int]]]:
    """Starts a rank in a process of its own; its number, and its store's port."""
    processes = []

    def make(rank: int, world: int, port: int = 0) -> tuple[int, int]:
        here, there = context.Pipe()
        child = context.Process(target=_living, args=(there, rank, world, port), daemon=True)
        child.start()
        processes.append((child, here))
        assert here.poll(60)
        assert child.pid is not None
        return child.pid, here.recv()

    yield make
    for child, _ in processes:
        child.kill()
        child.join()


def met(each: Watch, ranks: int) -> bool:
    return len(each._addresses.met) == ranks - 1


# -- who is lost
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGKILL, "its process has ended"), (signal.SIGSTOP, "is stopped or hangs")],
)
def test_a_rank_that_is_killed_or_stopped_is_lost(
    watches: Any, process: Any, number: int, words: str
) -> None:
    host = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pid, _ = process(2, 3, host.port)
    zero, one = watches(
        lambda _: dist.TCPStore("127.0.0.1", host.port, is_master=False), 2, world=3
    )
    until(lambda: met(zero, 3) and met(one, 3))
    os.kill(pid, number)
    for each in (zero, one):
        found, _ = each.diagnose()
        assert (found.kind, found.ranks) == ("lost", (2,)), found
        assert words in found.text


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGKILL, "its process has ended"), (signal.SIGSTOP, "is stopped or hangs")],
)
def test_a_holder_of_the_store_that_is_killed_or_stopped_is_lost(
    watches: Any, process: Any, number: int, words: str
) -> None:
    pid, port = process(0, 2)
    mine = Watch(dist.TCPStore("127.0.0.1", port, is_master=False), 1, 2)
    until(lambda: met(mine, 2))
    os.kill(pid, number)
    begun = time.monotonic()
    found, _ = mine.diagnose()
    mine.close()
    assert (found.kind, found.ranks) == ("lost", (0,)), found
    assert words in found.text
    assert time.monotonic() - begun < 15


def test_a_store_that_falls_silent_is_nobodys_fault_where_its_holder_answers(
    watches: Any, process: Any
) -> None:
    """The store is in a process of its own here, which stops; ranks 0 and 1 live."""
    pid, port = process(5, 6)
    both = watches(lambda _: dist.TCPStore("127.0.0.1", port, is_master=False), 2)
    until(lambda: all(met(each, 2) for each in both))
    os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()
    found, standings = both[1].diagnose()
    assert (found.kind, found.ranks) == ("store", ())
    assert found.text == (
        f"this rank cannot reach the store at 127.0.0.1:{port}, held by rank 0: it does not answer"
    )
    assert set(standings) == {0, 1}
    for each in both:
        each.close()
    assert time.monotonic() - begun < 15


class Slow:
    """A store that takes its time."""

    def __init__(self, store: Any, seconds: float) -> None:
        self._store, self._seconds = store, seconds

    def __getattr__(self, name: str) -> Any:
        answer = getattr(self._store, name)

        def later(*args: Any) -> Any:
            time.sleep(self._seconds)
            return answer(*args)

        return later if name in ("set", "get", "check", "multi_get", "compare_set") else answer


@pytest.mark.long
@pytest.mark.parametrize("beacons", [True, False])
def test_a_slow_store_makes_nobody_lost(
    watches: Any, monkeypatch: pytest.MonkeyPatch, beacons: bool
) -> None:
    if not beacons:
        monkeypatch.setattr(Watch, "_light", lambda _: None)
        monkeypatch.setattr(Addresses, "meet", lambda *_: None)
    store = dist.HashStore()
    ranks = watches(lambda _: Slow(store, 0.4), 3)
    if beacons:
        until(lambda: bool(ranks[0]._addresses.by_rank))
    found, _ = ranks[0].diagnose()
    assert (found.kind, found.ranks) == ("nobody", ()), found


def test_a_rank_that_never_came_is_lost(watches: Any) -> None:
    (one,) = watches(dist.HashStore(), 1, world=2)
    found, standings = one.diagnose()
    assert (found.kind, found.ranks) == ("lost", (1,))
    assert standings[1].label == "never came"


def test_one_rank_of_a_large_world_looks_and_all_others_name_the_same_rank(watches: Any) -> None:
    world, victim = 40, 17
    reads: list[int] = []

    class Counted:
        def __init__(self, store: Any) -> None:
            self._store = store

        def __getattr__(self, name: str) -> Any:
            return getattr(self._store, name)

        def multi_get(self, keys: list[str]) -> Any:
            reads.append(len(keys))
            return self._store.multi_get(keys)

    ranks = watches(Counted(dist.HashStore()), world)
    until(lambda: all(len(each._addresses.met) == 8 for each in ranks))
    ranks[victim]._stop.set()
    ranks[victim]._beacon.close()
    reads.clear()
    found: dict[int, Diagnosis] = {}
    threads = [
        threading.Thread(target=lambda each=each: found.update({each.rank: each.diagnose()[0]}))
        for each in ranks
        if each.rank != victim
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {(each.kind, each.ranks) for each in found.values()} == {("lost", (victim,))}
    assert sum("found by rank" in each.text for each in found.values()) == world - 2
    # one rank reads all heartbeats, a few times; none of the others does
    assert sum(size == world for size in reads) <= 8


# -- who ended, and how
# -----------------------------------------------------------------------------------------------


def test_an_end_is_heard_by_all_though_the_store_is_gone(watches: Any) -> None:
    zero, one, two = watches(dist.HashStore(), 3)
    until(lambda: all(met(each, 3) for each in (zero, one, two)))
    one.close(ValueError("no such layer\nand more"))
    assert zero._ended_standings[1].ended == two._ended_standings[1].ended == "raised"
    found, _ = zero.diagnose()
    assert (found.kind, found.ranks, found.text) == (
        "raised",
        (1,),
        "rank 1 raised ValueError: no such layer and more",
    )


@pytest.mark.filterwarnings("ignore")
def test_a_process_that_ends_by_an_error_says_so_though_nobody_closed(
    watches: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    zero, one = watches(dist.HashStore(), 2)
    until(lambda: met(one, 2))
    monkeypatch.setattr(sys, "last_value", KeyError("loss"), raising=False)
    watch._exiting(weakref.ref(one))
    found, _ = zero.diagnose()
    assert (found.kind, found.ranks, found.text) == (
        "raised",
        (1,),
        "rank 1 raised KeyError: 'loss'",
    )


def test_a_process_that_ends_without_closing_is_said_to_have_left(
    watches: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    zero, one = watches(dist.HashStore(), 2)
    until(lambda: met(one, 2))
    monkeypatch.delattr(sys, "last_value", raising=False)
    watch._exiting(weakref.ref(one))
    found, _ = zero.diagnose()
    assert (found.kind, found.ranks) == ("left", (1,))
    assert "its process ended without closing the syncer" in found.text


def test_a_rank_that_ended_by_its_verdict_is_not_blamed_for_it(watches: Any) -> None:
    zero, one, two = watches(dist.HashStore(), 3)
    until(lambda: all(met(each, 3) for each in (zero, one, two)))
    one.end("failed", "words", Diagnosis("lost", (2,), "rank 2 lost"))
    one.close(FlightError("words"))
    one._beacon.close()
    found, _ = zero.diagnose()
    assert (found.kind, found.ranks, found.text) == ("lost", (2,), "rank 2 lost (found by rank 1)")


def _raising(rank: int, victim: int) -> tuple[str, tuple[int, ...], str]:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def fail(step: int) -> None:
        if step == 3 and rank == victim:
            raise ValueError("boom at step 3")

    try:
        with thinwire.attach(model, optimizer, timeout=timedelta(seconds=8)):
            train(model, optimizer, rank, range(50), each=fail)
    except RankLostError as error:
        return type(error).__name__, error.ranks, str(error)
    except ValueError:
        os.kill(os.getpid(), signal.SIGKILL)  # the process ends
    return "nothing", (), ""


@pytest.mark.parametrize("victim", [0, 2], ids=["the store's host", "another"])
def test_a_rank_that_raised_is_reported_with_its_words_by_all_others(victim: int) -> None:
    results = run_ranks(3, _raising, victim, host="rank0")
    assert results.pop(victim) == -signal.SIGKILL
    for kind, ranks, words in results:
        assert (kind, ranks) == ("RankLostError", (victim,)), words
        assert words.startswith(f"rank {victim} raised ValueError: boom at step 3. step "), words


# -- beacons and asks
# -------------------------------------------------------------------------------------------------
