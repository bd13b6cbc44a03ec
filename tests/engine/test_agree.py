"""What ranks exchange outside the schedule: bytes, seconds, rank 0's values, and facts that must
agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.threads import on_threads
from thinwire.core import Driver
from thinwire.engine import agree
from thinwire.engine.observe.meter import Meter
from thinwire.errors import AttachError, DisagreementError
from thinwire.how import gossip
from thinwire.what import topk, uniform

CPU = torch.device("cpu")
Work = Callable[[Driver, Meter], Any]


def ran(world: int, work: Work) -> list[Any]:
    """What `work` returned or raised on each rank."""
    results = on_threads(world, lambda driver: work(driver, Meter(driver.world)))
    return [results[rank] for rank in range(world)]


def test_bytes_of_any_length_come_from_every_rank_in_order() -> None:
    payloads = [b"", b"one", b"22" * 500]

    def work(driver: Driver, meter: Meter) -> tuple[list[bytes], float]:
        gathered = agree.all_gather(driver, meter, payloads[driver.rank], "step 7: validation", CPU)
        return gathered, meter.around["validation"]

    results = ran(3, work)
    assert [gathered for gathered, _ in results] == [payloads] * 3
    sent = [nbytes for _, nbytes in results]
    assert sent[0] < sent[1] < sent[2], "each rank's meter counts its own bytes"


def test_the_slowest_rank_is_known_to_all() -> None:
    seconds = [0.5, 1e-9, 3.25]

    def work(driver: Driver, meter: Meter) -> float:
        return agree.slowest(driver, meter, seconds[driver.rank], "seconds", CPU)

    assert ran(3, work) == [3.25] * 3


def test_a_gathering_travels_while_the_rank_goes_on() -> None:
    def work(driver: Driver, meter: Meter) -> list[bytes]:
        first = agree.Gathering(driver, meter, b"a", "first", CPU)
        second = agree.Gathering(driver, meter, b"b", "second", CPU)
        return first.result() + second.result()

    assert ran(2, work) == [[b"a", b"a", b"b", b"b"]] * 2


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ([1.0, -1.0, float("nan")], r"by rank: \{1: -1\.0, 2: nan\}"),
        ([1.0, float("inf")], r"by rank: \{1: inf\}"),
        ([0.0, 0.0], r"by rank: \{0: 0\.0, 1: 0\.0\}"),
    ],
)
def test_weights_that_make_no_mean_are_refused_by_rank(weights: list[float], reason: str) -> None:
    with pytest.raises(AttachError, match=f"finite, at least 0 and not all 0; {reason}"):
        agree.fractions(weights)


def test_weights_are_fractions_of_their_sum() -> None:
    assert agree.fractions([3, 0, 1]) == [0.75, 0.0, 0.25]
    assert agree.fractions([2, 2], gossip()) == [0.5, 0.5]
    with pytest.raises(AttachError, match="gossip"):
        agree.fractions([1, 2], gossip())


def shared() -> list[Tensor]:
    """Tensors of several types and alignments, some of them views."""
    return [
        torch.arange(5, dtype=torch.uint8),
        torch.tensor([1.5, float("nan")], dtype=torch.bfloat16),
        torch.tensor(True),
        torch.arange(12.0).view(3, 4).T,
        torch.tensor(7, dtype=torch.int64),
        torch.empty(0),
        torch.arange(4.0, dtype=torch.float64)[::2],
    ]


@pytest.mark.parametrize("world", [1, 2, 5])
def test_rank_0s_values_are_everyones(world: int) -> None:
    def work(driver: Driver, meter: Meter) -> list[Tensor]:
        mine = shared() if driver.rank == 0 else [torch.zeros_like(each) for each in shared()]
        agree.broadcast(driver, meter, mine, "buffers")
        return mine

    for mine in ran(world, work):
        for own, expected in zip(mine, shared(), strict=True):
            assert own.dtype == expected.dtype
            assert torch.equal(own.nan_to_num(9), expected.nan_to_num(9))


def differing(*facts: dict[str, Any]) -> list[str]:
    """What each rank is told where rank r holds `facts[r]`; empty where nothing."""

    def work(driver: Driver, meter: Meter) -> str:
        try:
            agree.must_agree(driver, meter, facts[driver.rank], CPU)
        except DisagreementError as error:
            return str(error)
        return ""

    return ran(len(facts), work)


def test_the_first_fact_that_differs_is_named_with_who_holds_what() -> None:
    facts = {"seed": 1, "lanes": 2, "last": 0}
    assert differing(facts, facts, facts) == [""] * 3
    told = differing(facts, facts | {"lanes": 4, "last": 1}, facts)
    assert (
        told
        == [
            "ranks cannot train together: lanes differs (ranks 0, 2: 2; rank 1: 4). Give every "
            "rank "
            "the same"
        ]
        * 3
    )


def test_of_a_list_the_first_item_that_differs_is_named() -> None:
    (told, _) = differing({"model": ["a", "b", "c"]}, {"model": ["a", "x"]})
    assert 'model[1] differs (rank 0: "b"; rank 1: "x")' in told
    (told, _) = differing({"model": ["a"]}, {"model": ["a", "x"]})
    assert 'model[1] differs (rank 0: null; rank 1: "x")' in told


def test_strategies_are_compared_by_fingerprint_and_shown_as_code() -> None:
    told, _ = differing(
        {"strategy": agree.identified(uniform(4))}, {"strategy": agree.identified(topk(0.5))}
    )
    assert repr(repr(uniform(4)))[1:-1] in told
    assert "topk(" in told
    assert agree.identified(topk(0.5))["fingerprint"] not in told
    renamed = agree.identified(uniform(4)) | {"code": "as an older version wrote it"}
    assert differing({"what": agree.identified(uniform(4))}, {"what": renamed}) == ["", ""]


def test_facts_of_other_names_are_of_another_version() -> None:
    for told in differing({"seed": 1}, {"seed": 1, "new": 2})[:1]:
        assert "they run different versions of thinwire" in told


def test_values_that_differ_are_found_by_name_and_rank() -> None:
    def work(driver: Driver, meter: Meter) -> str:
        named = [("a", torch.ones(3)), ("b", torch.full((2,), float(driver.rank == 2)))]
        try:
            agree.compare(driver, meter, named, CPU)
        except DisagreementError as error:
            return str(error)
        return ""

    told = "'b' differs: ranks [2] do not hold rank 0's bits (the first of 2 that differs)"
    assert ran(3, work) == [told] * 3


def test_minus_zero_and_another_nan_are_other_bits() -> None:
    assert agree.hash_of(torch.tensor(0.0)) != agree.hash_of(torch.tensor(-0.0))
    assert len(agree.hash_of(torch.zeros(0))) == 16
    x = torch.arange(6.0).view(2, 3)
    assert agree.raw(x.T) == agree.raw(x.T.contiguous()) != agree.raw(x)


def test_problems_of_one_rank_are_told_on_all() -> None:
    def work(driver: Driver, meter: Meter) -> str:
        problems = ["one", "two"] if driver.rank == 1 else []
        try:
            agree.compare(driver, meter, [("a", torch.ones(1))], CPU, problems)
        except AttachError as error:
            return str(error)
        return ""

    assert ran(2, work) == ["check():\nrank 1: one; two"] * 2
