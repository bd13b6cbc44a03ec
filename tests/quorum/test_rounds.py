"""Rounds with a quorum: late ranks count later, those that leave are missed once, those that come
take up the newest anchor."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import thinwire
from tests.engine.models import near
from tests.quorum.runs import (
    OWN,
    RATE,
    START,
    STARTS,
    WEIGHTS,
    H,
    Rank,
    moved,
    ran,
    strategy,
    together,
)
from tests.ranks import context
from tests.threads import on_threads
from thinwire.core import Codec, Driver, Outer
from thinwire.errors import FlightError, QuorumError
from thinwire.on import nesterov, sgd
from thinwire.quorum import QuorumSyncer
from thinwire.what import feedback, identity, randomk, topk, uniform


@pytest.mark.parametrize(
    ("what", "outer"),
    [
        (identity(), nesterov(0.7, 0.9)),
        (feedback(topk(2)), sgd(0.8)),
        (randomk(3), sgd(1.0)),
        (uniform(8, rounding="stochastic"), sgd(0.5, 0.9)),
    ],
    ids=repr,
)
def test_ranks_in_time_train_as_if_attached(what: Codec, outer: Outer) -> None:
    given = strategy(what, outer)

    def attached(driver: Driver) -> Tensor:
        model = nn.ParameterList(nn.Parameter(start.clone()) for start in STARTS)
        optimizer = torch.optim.SGD(model.parameters(), RATE)
        with thinwire.attach(
            model, optimizer, given, driver=driver, bucket_bytes=24, weight=WEIGHTS[driver.rank]
        ):
            for _ in range(3 * H):
                (
                    0.5
                    * (torch.cat([param.reshape(-1) for param in model]) - OWN[driver.rank])
                    .square()
                    .sum()
                ).backward()
                optimizer.step()
                optimizer.zero_grad()
        return torch.cat([param.detach().reshape(-1) for param in model])

    def joined(rank: int, store: Any) -> tuple[Tensor, int, float]:
        mine = Rank(store, rank, given, weight=WEIGHTS[rank])
        with mine.sync as sync:
            for _ in range(3):
                mine.round()
            sync.check()
            assert sync.step == 3 * H
            return mine.flat, sync.version, sync.report().sent_bytes

    expected = ran(on_threads(3, attached))
    for (flat, version, sent), want in zip(together(3, joined), expected, strict=True):
        assert version == 3
        assert sent > 0
        assert near(flat, want, 1e-12 if what != uniform(8, rounding="stochastic") else 0.1)


@pytest.mark.filterwarnings("ignore:round .* closed without", "ignore:rank . came late")
def test_what_comes_late_counts_in_the_next_round_and_its_rank_goes_on_from_the_newest_anchor() -> (
    None
):
    closed, offered, over = threading.Event(), threading.Event(), threading.Event()

    def work(rank: int, store: Any) -> list[Tensor]:
        mine = Rank(store, rank, grace_s=0.1)
        with mine.sync as sync:
            if rank < 2:
                ends = [mine.round()]  # closes after the grace, without rank 2
                closed.set()
                assert offered.wait(150)
                ends.append(mine.round())
                assert sync.members == (0, 1, 2)
                over.set()
            else:
                for _ in range(H - 1):
                    mine.step()
                assert closed.wait(150)
                mine.step()  # late, and waits for nobody
                ends = [mine.flat]
                assert sync.version == 1
                offered.set()
                assert over.wait(150)
                ends.append(mine.round())
            sync.check()
        return ends

    late, first = 1 / math.sqrt(2), START - (moved(START, 0) + moved(START, 1)) / 2
    second = first - (moved(first, 0) + moved(first, 1) + late * moved(START, 2)) / (2 + late)
    for ends in together(3, work):
        assert near(ends[0], first)
        assert near(ends[1], second)


@pytest.mark.filterwarnings("ignore:round .* closed without", "ignore:rank . came late")
@pytest.mark.parametrize("slow", [False, True])
def test_who_is_late_by_a_hiccup_is_waited_for_once_and_who_is_slow_no_more(slow: bool) -> None:
    closed = [threading.Event() for _ in range(2)]
    offered = [threading.Event() for _ in range(2)]
    over, short, long = threading.Event(), 0.05, 100.0

    def work(rank: int, store: Any) -> float:
        mine = Rank(store, rank)
        with mine.sync as sync:
            if rank < 2:
                for number in range(1 + slow):
                    sync.rounds.grace_s = short
                    mine.round()
                    closed[number].set()
                    assert offered[number].wait(150)
                sync.rounds.grace_s, begun = long, time.monotonic()
                mine.round()
                took = time.monotonic() - begun
                assert sync.members == (0, 1, 2)
                assert sync.rounds.anchor.in_time == ((0, 1) if slow else (0, 1, 2))
                over.set()
                return took
            for number in range(1 + slow):
                for _ in range(H - 1):
                    mine.step()
                assert closed[number].wait(150)
                mine.step()
                assert sync.version == number + 1
                offered[number].set()
            if not slow:
                mine.round()
            assert over.wait(150)
            return 0.0

    assert max(together(3, work)) < 50


@pytest.mark.filterwarnings("ignore:round 0 closed without rank 1")
def test_a_round_that_has_its_quorum_waits_for_the_others_beyond_the_timeout() -> None:
    mine = Rank(dist.HashStore(), 0, world=2, quorum=1, grace_s=1.0, timeout=timedelta(seconds=0.2))
    begun = time.monotonic()
    mine.round()
    assert time.monotonic() - begun >= 1.0
    assert mine.sync.version == 1
    mine.sync.close()


@pytest.mark.filterwarnings("ignore:round 1 closed without rank 2")
def test_a_rank_that_leaves_is_not_waited_for() -> None:
    def work(rank: int, store: Any) -> tuple[Tensor, float]:
        mine = Rank(store, rank)  # a grace of 30 s
        with mine.sync as sync:
            mine.round()
            if rank == 2:
                return mine.flat, 0.0
            begun = time.monotonic()
            mine.round()
            took = time.monotonic() - begun
            assert sync.members == (0, 1)
            mine.round()
            sync.check()
            return mine.flat, took

    (zero, took, *_), (one, _), _ = together(3, work)
    assert torch.equal(zero, one)
    assert took < 15


def test_a_round_without_its_quorum_says_who_came() -> None:
    mine = Rank(dist.HashStore(), 1, timeout=timedelta(seconds=0.2))
    with pytest.raises(
        QuorumError, match=r"round 0: only ranks \[1\] came within 0\.2 s, and 2 make the quorum"
    ):
        mine.round()


def test_parameters_that_are_not_finite_take_their_rank_out_and_no_other() -> None:
    mine = Rank(dist.HashStore(), 0)
    mine.step()
    with torch.no_grad():
        next(iter(mine.model)).fill_(float("nan"))
    with pytest.raises(FlightError, match=r"round 0: this rank's '.*' is not finite"):
        mine.round()


def test_a_store_that_is_gone_says_so() -> None:
    host = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    mine = Rank(dist.TCPStore("127.0.0.1", host.port, is_master=False), 0)
    del host
    with pytest.raises(FlightError, match=r"this rank cannot reach the store at 127\.0\.0\.1:"):
        mine.round()


# -- real processes
# --------------------------------------------------------------------------------------------------


ROUNDS = 8
"""How many rounds the rank that comes again trains."""


def _process(port: int, rank: int, label: str, pause_s: float, dies_at: int) -> None:
    """Train until the round that the rank labelled "again" sets as the last, when it is there."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    given = strategy(feedback(topk(3)), nesterov(0.6, 0.9))
    mine = Rank(store, rank, given, world=4, quorum=2, grace_s=0.5)
    with mine.sync as sync:
        if label == "again":
            store.set("joined", str(sync.version))
            store.set("last", str(sync.version + ROUNDS))
        late = 0
        while not store.check(["last"]) or sync.version < int(store.get("last")):
            if sync.step >= dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            before = sync.version
            for _ in range(H):
                time.sleep(pause_s)
                mine.step()
            late += sync.version > before + 1
            sync.check()
        store.set(
            f"done/{label}",
            json.dumps(
                [sync.version, late, sync.members, [float(x).hex() for x in anchor_of(sync)]]
            ),
        )


def anchor_of(sync: QuorumSyncer) -> list[Tensor]:
    return list(torch.cat([bucket.state["anchor"].value for bucket in sync.buckets]))


@pytest.mark.timeout(280)
def test_processes_are_slow_are_killed_and_come_and_all_anchors_are_equal() -> None:
    """Rank 2 is slow, rank 3 is killed between two rounds, and comes again while the others go
    on."""
    host = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    never = 10**9
    ranks = {
        "a": (0, 0.05, never),
        "b": (1, 0.05, never),
        "slow": (2, 0.35, never),
        "killed": (3, 0.05, 2 * H),
    }
    processes = {}

    def start(label: str, rank: int, pause_s: float, dies_at: int) -> None:
        processes[label] = context.Process(
            target=_process, args=(host.port, rank, label, pause_s, dies_at), daemon=True
        )
        processes[label].start()

    for label, (rank, pause_s, dies_at) in ranks.items():
        start(label, rank, pause_s, dies_at)
    processes["killed"].join(200)
    assert processes["killed"].exitcode == -signal.SIGKILL
    start("again", 3, 0.05, never)
    for label in ("a", "b", "slow", "again"):
        processes[label].join(200)
        assert processes[label].exitcode == 0, label
    ends = {label: json.loads(host.get(f"done/{label}")) for label in ("a", "b", "slow", "again")}
    assert int(host.get("joined")) >= 2, "it took up an anchor of a later round"
    assert ends["slow"][1] >= 1, "it jumped over rounds"
    last = int(host.get("last"))
    anchors = [tuple(anchor) for version, _, _, anchor in ends.values() if version == last]
    assert len(anchors) >= 2
    assert len(set(anchors)) == 1, "bit for bit"
    assert 3 in ends["a"][2] or 3 in ends["b"][2] or ends["again"][0] >= last
