"""The harness of faults: what it draws, and how it judges a verdict."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from benchmarks.faults import KINDS, STRATEGIES, Fault, drawn, judged_by


def test_a_seed_draws_34_faults_of_every_kind_and_strategy() -> None:
    faults = drawn(0)
    assert len(faults) == 34
    assert Counter(fault.kind for fault in faults) == Counter(KINDS)
    assert {fault.strategy for fault in faults} == set(STRATEGIES)
    assert faults == drawn(0)
    assert faults != drawn(1)
    for fault in faults:
        assert len(set(fault.ranks)) == (2 if "two" in fault.kind or "cut" in fault.kind else 1)
        assert ("host" in fault.kind) <= (0 in fault.ranks)


def said(
    kind: str, ranks: tuple[int, ...] = (), words: str = "", one_way: bool = False
) -> dict[str, Any]:
    return {"kind": kind, "ranks": list(ranks), "words": words, "one_way": one_way}


KILL, TWO = Fault(0, "kill", "topk", (2,), 20), Fault(0, "kill two", "topk", (1, 2), 20)
CUT, HOST, RAISE = (
    Fault(0, "cut", "topk", (1, 2), 20),
    Fault(0, "cut to host", "topk", (3, 0), 20),
    Fault(0, "raise", "topk", (1,), 20),
)
UNREACHED = "this rank cannot reach the store at 10.77.0.1:1, held by rank 0: it does not answer"


@pytest.mark.parametrize(
    ("fault", "rank", "verdict", "judged"),
    [
        (KILL, 0, said("RankLostError", (2,)), "right"),
        (KILL, 0, said("RankLostError", (0,)), "wrong"),
        (KILL, 0, said("RankLostError", (1, 2)), "wrong"),
        (KILL, 0, said("FlightError"), "none"),
        (KILL, 0, said("FlightError", words=UNREACHED), "none"),
        (KILL, 0, said("LinkLostError", (0, 2)), "wrong"),
        (KILL, 0, None, "none"),
        (TWO, 0, said("RankLostError", (1, 2)), "right"),
        (TWO, 0, said("RankLostError", (1,)), "wrong"),
        (CUT, 0, said("LinkLostError", (1, 2), one_way=True), "right"),
        (CUT, 0, said("LinkLostError", (2, 1)), "right"),
        (CUT, 0, said("LinkLostError", (2, 1), one_way=True), "wrong"),
        (CUT, 0, said("LinkLostError", (0, 1)), "wrong"),
        (CUT, 1, said("RankLostError", (2,)), "wrong"),
        (CUT, 1, said("FlightError", words=UNREACHED), "none"),
        (HOST, 3, said("FlightError", words=UNREACHED), "right"),
        (HOST, 2, said("FlightError", words=UNREACHED), "none"),
        (HOST, 3, said("RankLostError", (0,)), "wrong"),
        (
            RAISE,
            0,
            said("RankLostError", (1,), "rank 1 raised ValueError: boom at step 20. step 20 …"),
            "right",
        ),
        (RAISE, 0, said("RankLostError", (1,), "rank 1 lost: no heartbeat"), "wrong"),
    ],
)
def test_a_verdict_is_judged(
    fault: Fault, rank: int, verdict: dict[str, Any] | None, judged: str
) -> None:
    assert judged_by(fault, rank, verdict) == judged


def test_ranks_that_are_cut_off_from_one_another_survive() -> None:
    assert KILL.survivors == [0, 1, 3]
    assert TWO.survivors == [0, 3]
    assert CUT.survivors == [0, 1, 2, 3]
