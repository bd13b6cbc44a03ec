"""Errors: one root, and what each carries for a program to read."""

from __future__ import annotations

import inspect

import pytest

from thinwire import errors
from thinwire.errors import (
    FlightError,
    LinkLostError,
    QuorumError,
    RankLostError,
    StrategyError,
    ThinwireError,
)

ALL = [
    each
    for _, each in inspect.getmembers(errors, inspect.isclass)
    if each.__module__ == errors.__name__ and each is not ThinwireError
]


@pytest.mark.parametrize("error", ALL, ids=lambda each: each.__name__)
def test_one_root_catches_all_and_a_builtin_catches_each(error: type[Exception]) -> None:
    assert issubclass(error, ThinwireError)
    assert issubclass(error, ValueError | RuntimeError)


def test_all_reasons_of_a_strategy_are_kept_and_printed() -> None:
    assert StrategyError("one").reasons == ("one",)
    both = StrategyError(["one", "two"])
    assert (both.reasons, str(both)) == (("one", "two"), "one\ntwo")


def test_whoever_catches_a_failed_flight_catches_lost_ranks_links_and_quorums() -> None:
    lost, cut = RankLostError([2, 1], "gone"), LinkLostError([0, 3], True, "cut")
    assert (lost.ranks, str(lost)) == ((2, 1), "gone")
    assert (cut.ranks, cut.one_way, str(cut)) == ((0, 3), True, "cut")
    assert all(
        issubclass(each, FlightError) for each in (RankLostError, LinkLostError, QuorumError)
    )
