"""Tables of levels and the scale that suits them."""

from __future__ import annotations

import pytest

from tests.what.scalar.test_scaled import error
from thinwire.what import fp4, fp8, nf4, scaled, uniform
from thinwire.what.scalar._levels import Levels


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_best_scale_errs_least(bits: int) -> None:
    inner = uniform(bits, step=1 / (2 ** (bits - 1) - 1))  # type: ignore[arg-type]
    errors = [error(scaled(32, fit) >> inner) for fit in (bits, "near", "cover")]  # type: ignore[arg-type]
    assert errors[0] < min(errors[1:]) * {2: 0.9, 3: 0.95, 4: 0.99, 8: 0.999}[bits]


@pytest.mark.parametrize(
    "inner", [nf4(0), fp4("e2m1", 0), fp4("e3m0", 0), fp8("e4m3", 0), fp8("e5m2", 0)], ids=repr
)
def test_the_best_scale_of_a_table_errs_least(inner: Levels) -> None:
    fit = getattr(inner, "format", "nf4")
    errors = [error(scaled(32, each) >> inner) for each in (fit, "near", "cover")]  # type: ignore[arg-type]
    assert errors[0] < 0.98 * min(errors[1:])
