"""k as a count of entries, or as a fraction of them."""

from __future__ import annotations

import math

import pytest

from thinwire.what.sparse._share import count_of, wrong


@pytest.mark.parametrize(
    ("k", "n", "count"),
    [
        (3, 10, 3),
        (30, 10, 10),
        (1, 0, 0),
        (0.5, 0, 0),
        (1.0, 7, 7),
        (0.001, 7, 1),
        (0.3, 10, 3),
        (0.1, 10**9, 10**8),
    ],
)
def test_a_fraction_is_rounded_up_to_a_count_of_what_there_is(
    k: int | float, n: int, count: int
) -> None:
    assert count_of(k, n) == count


def test_a_fraction_that_is_whole_in_decimals_is_not_rounded_beyond_it() -> None:
    for percent in range(1, 101):
        assert count_of(percent / 100, 100) == percent
        assert count_of(math.nextafter(percent / 100, 0), 100) == percent


@pytest.mark.parametrize("k", [0, -1, 0.0, -0.5, 1.5, 2.0, float("nan"), True, float("inf")])
def test_what_is_neither_is_refused_by_name(k: int | float) -> None:
    (reason,) = wrong("topk", k)
    assert reason.startswith(f"topk(k={k}): ")


@pytest.mark.parametrize("k", [1, 10**12, 1.0, 1e-9])
def test_what_is_one_of_them_is_not(k: int | float) -> None:
    assert wrong("topk", k) == []
