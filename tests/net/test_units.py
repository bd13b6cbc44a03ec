"""Rates, times and fractions: what is written reads back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinwire.net import units


@given(st.integers(8_000, 10**12), st.integers(0, 10**8))
def test_what_is_written_reads_back(rate: int, microseconds: int) -> None:
    assert units.bits_per_s(units.rate_text(rate)) == pytest.approx(rate, rel=1e-11)
    assert units.seconds(units.seconds_text(microseconds / 1e6)) == pytest.approx(
        microseconds / 1e6, rel=1e-11
    )


@pytest.mark.parametrize("text", ["", "10", "mbit", "-1mbit", "1e9bit", "10zbit", "nan", "1kbit"])
def test_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match=r"rate|below"):
        units.bits_per_s(text)


@pytest.mark.parametrize("text", ["", "1", "101%", "-1%", "nan%"])
def test_no_fraction(text: str) -> None:
    with pytest.raises(ValueError, match=r"fraction|more than 100%"):
        units.fraction(text)


@given(st.integers(0, 10**6))
def test_a_fraction_reads_back(millionths: int) -> None:
    value = millionths / 1e6
    assert units.fraction(units.fraction_text(value)) == pytest.approx(value, rel=1e-11)
