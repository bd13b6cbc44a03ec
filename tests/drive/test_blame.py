"""Verdicts: from what a rank has seen to whom it blames."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from thinwire.drive.beacon import State
from thinwire.drive.blame import Diagnosis, Evidence, Standing, judge

AT = Standing(count=9, label="step 3")


def seen(
    rank: int = 2,
    probes: dict[int, State] | None = None,
    tried: dict[int, dict[int, State]] | None = None,
    moving: set[int] | None = None,
    store: Any = "answers",
    standings: dict[int, Standing] | None = None,
    world: int = 4,
    holder: int | None = 0,
) -> Evidence:
    others = [other for other in range(world) if other != rank]
    answers: dict[int, State] = dict.fromkeys(others, "answers")
    return Evidence(
        rank,
        world,
        holder,
        "10.0.0.1:29500",
        store,
        dict.fromkeys(range(world), AT) | (standings or {}),
        set(range(world)) if moving is None else moving,
        set(others),
        answers | (probes or {}),
        tried or {},
    )


def without(*ranks: int, world: int = 4) -> set[int]:
    return set(range(world)) - set(ranks)


WITNESSED = {0: {1: "unreachable"}, 3: {1: "unreachable"}}


@pytest.mark.parametrize(
    ("evidence", "kind", "ranks", "words"),
    [
        (seen(), "nobody", (), "every rank that was asked answers"),
        (
            seen(probes={1: "refused"}, moving=without(1)),
            "lost",
            (1,),
            "rank 1 lost: no heartbeat, and its process has ended",
        ),
        (seen(probes={1: "silent"}, moving=without(1)), "lost", (1,), "stopped or hangs"),
        (
            seen(probes={1: "refused", 3: "refused"}, moving=without(1, 3)),
            "lost",
            (1, 3),
            "rank 1 and rank 3 lost",
        ),
        (
            seen(probes={0: "refused"}, moving=set(), store="refused"),
            "lost",
            (0,),
            "its process has ended",
        ),
        (
            seen(probes={0: "silent"}, moving=set(), store="silent"),
            "lost",
            (0,),
            "stopped or hangs",
        ),
        (
            seen(probes={1: "unreachable"}, tried=WITNESSED, moving=without(1)),
            "lost",
            (1,),
            "neither this rank nor rank 0 and rank 3 can reach it",
        ),
        # a heart that beats, or an answer, clears a rank whatever the store's clock says
        (seen(probes={1: "silent"}), "nobody", (), ""),
        (seen(moving=set()), "nobody", (), ""),
        # whom only this rank cannot reach is not lost
        (
            seen(probes={1: "unreachable"}),
            "link",
            (1, 2),
            "nothing passes between rank 1 and rank 2, though both live",
        ),
        (
            seen(
                probes={0: "unreachable"}, tried={1: {0: "answers"}}, moving=set(), store="silent"
            ),
            "link",
            (0, 2),
            "between rank 0 and rank 2",
        ),
        # two others, that do not reach one another
        (
            seen(tried={0: {1: "unreachable"}}, moving=without(1)),
            "link",
            (0, 1),
            "between rank 0 and rank 1",
        ),
        # a rank whose own link is cut blames nobody
        (
            seen(
                probes={0: "unreachable", 1: "unreachable", 3: "unreachable"},
                moving=set(),
                store="silent",
            ),
            "alone",
            (),
            (
                "this rank reaches neither of rank 0 and rank 1 and rank 3, nor the store at "
                "10.0.0.1:29500, held by rank 0"
            ),
        ),
        (
            seen(rank=0, probes={1: "unreachable", 2: "unreachable", 3: "unreachable"}, moving={0}),
            "alone",
            (),
            "its own link is cut",
        ),
        # a store that does not answer is nobody's fault where its holder lives, or cannot be
        # reached and nobody else can be asked
        (
            seen(moving=set(), store="silent"),
            "store",
            (),
            "cannot reach the store at 10.0.0.1:29500, held by rank 0: it does not answer",
        ),
        (
            seen(moving=set(), store="refused", holder=None),
            "store",
            (),
            "which a launcher holds: it has closed the connection",
        ),
        (
            seen(rank=1, world=2, probes={0: "unreachable"}, moving=set(), store="silent"),
            "store",
            (),
            "this rank cannot reach the store",
        ),
        (
            seen(rank=0, world=2, probes={1: "unreachable"}, moving={0}),
            "lost",
            (1,),
            "no heartbeat, and this rank cannot reach it",
        ),
        # without beacons: by heartbeats alone, and the store's connection
        (
            seen(probes=dict.fromkeys((0, 1, 3), "unknown"), moving=without(1)),
            "lost",
            (1,),
            "no heartbeat",
        ),
        (
            seen(probes=dict.fromkeys((0, 1, 3), "unknown"), moving=set(), store="silent"),
            "store",
            (),
            "it does not answer",
        ),
        (
            seen(probes=dict.fromkeys((0, 1, 3), "unknown"), moving=set(), store="refused"),
            "lost",
            (0,),
            "which its process holds, is gone",
        ),
    ],
)
def test_a_verdict(evidence: Evidence, kind: str, ranks: tuple[int, ...], words: str) -> None:
    found = judge(evidence)
    assert (found.kind, found.ranks) == (kind, ranks), found
    assert words in found.text


def test_a_rank_that_raised_is_reported_with_its_words_and_who_ended_by_it_is_not() -> None:
    raised = replace(AT, ended="raised", why="ValueError: boom")
    failed = replace(
        AT,
        ended="failed",
        why="rank 1 raised",
        verdict=Diagnosis("raised", (1,), "rank 1 raised ValueError: boom"),
    )
    found = judge(
        seen(
            probes={1: "refused", 3: "refused"},
            moving=without(1, 3),
            standings={1: raised, 3: failed},
        )
    )
    assert (found.kind, found.ranks, found.text) == (
        "raised",
        (1,),
        "rank 1 raised ValueError: boom",
    )


def test_what_a_rank_found_before_it_ended_is_taken_over_and_it_is_not_blamed() -> None:
    verdict = Diagnosis(
        "link", (1, 0), "nothing from rank 1 reaches rank 0, though both live", (1, 0)
    )
    failed = replace(AT, ended="failed", verdict=verdict)
    found = judge(seen(probes={0: "refused"}, moving=set(), store="refused", standings={0: failed}))
    assert (found.kind, found.ranks, found.link) == ("link", (1, 0), (1, 0))
    assert found.text.endswith("(found by rank 0)")
    again = judge(
        seen(
            rank=3, probes={2: "refused"}, standings={2: replace(AT, ended="failed", verdict=found)}
        )
    )
    assert again.text.count("found by") == 1


def test_a_rank_that_others_take_for_lost_says_that_they_ended() -> None:
    failed = replace(AT, ended="failed", verdict=Diagnosis("lost", (2,), "rank 2 lost"))
    found = judge(seen(probes={0: "refused"}, store="refused", moving=set(), standings={0: failed}))
    assert (found.kind, found.ranks) == ("alone", ())
    assert found.text.startswith("rank 0 did not reach this rank, and has ended")


def test_a_rank_that_closed_left_only_where_nothing_worse_is_known() -> None:
    closed = replace(AT, ended="closed", why="its process ended without closing the syncer")
    found = judge(seen(probes={1: "refused"}, moving=without(1), standings={1: closed}))
    assert (found.kind, found.ranks) == ("left", (1,))
    assert "closed and left (its process ended without closing the syncer)" in found.text
    assert judge(
        seen(probes={1: "refused", 3: "refused"}, moving=without(1, 3), standings={1: closed})
    ).ranks == (3,)


@pytest.mark.parametrize(
    ("zero", "one", "link"),
    [
        ((7, 1, (1, 2)), (7, 2, (0,)), (1, 0)),
        ((7, 2, (1,)), (7, 1, (0, 3)), (0, 1)),
        ((8, 1, (1,)), (7, 1, (0, 3)), (0, 1)),
        ((7, 1, (1,)), (7, 1, (0,)), None),
        ((7, 1, (3,)), (7, 2, (3,)), None),
    ],
)
def test_the_way_that_is_cut_is_told_by_who_waits_in_an_earlier_hop(
    zero: Any, one: Any, link: tuple[int, int] | None
) -> None:
    standings = {0: replace(AT, hops={0: zero}), 1: replace(AT, hops={0: one})}
    found = judge(seen(tried={0: {1: "unreachable"}}, moving=without(1), standings=standings))
    assert (found.kind, found.link) == ("link", link)
    assert found.ranks == (link or (0, 1))
