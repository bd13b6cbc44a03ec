"""Wires one after another, and changes in time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.net.networks import WIRES
from thinwire.net import Change, Wire


@given(WIRES, WIRES, WIRES)
def test_wires_one_after_another_are_one_wire(a: Wire, b: Wire, c: Wire) -> None:
    assert a.then(Wire()).loss == pytest.approx(a.loss, abs=1e-15)
    one, other = a.then(b).then(c), a.then(b.then(c))
    assert one.latency_s == pytest.approx(other.latency_s)
    assert one.loss == pytest.approx(other.loss)
    assert max(a.loss, b.loss) - 1e-12 <= a.then(b).loss < 1


@pytest.mark.parametrize("wire", [Wire(-1), Wire(31), Wire(0, -1), Wire(0, 0, 1), Wire(0, 0, -0.1)])
def test_a_wire_that_cannot_be_has_a_problem(wire: Wire) -> None:
    assert "rtt and jitter are from 0 to 60 s" in (wire.problem() or "")


@given(st.floats(0, 100), st.floats(0.1, 100), st.floats(0, 300))
def test_a_change_holds_for_as_long_as_it_lasts(at: float, lasts: float, second: float) -> None:
    assert Change(at, lasts, loss=0.5).holds(second) == (at <= second < at + lasts)
    assert Change(at, loss=0.5).holds(second) == (at <= second)


def test_a_change_keeps_what_it_does_not_set() -> None:
    assert Change(0, loss=0.5).applied(Wire(1, 2, 0.1)) == Wire(1, 2, 0.5)
