"""The interval of a measured loss."""

import pytest

from thinwire.lab.check import SURE, interval


@pytest.mark.parametrize(("lost", "n"), [(0, 200), (5, 200), (200, 200), (1, 10**6)])
def test_an_interval_holds_its_fraction_and_is_wider_where_it_judges(lost: int, n: int) -> None:
    low, high = interval(lost, n, 1.96)
    least, most = interval(lost, n, SURE)
    assert 0 <= least <= low <= lost / n + 1e-12
    assert lost / n - 1e-12 <= high <= most + 1e-12 <= 1 + 1e-11
