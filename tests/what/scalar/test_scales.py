"""Steps of rows and blocks."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.what.scalar.test_uniform import SEAT
from thinwire.core import Part, Spec, State
from thinwire.what import uniform
from thinwire.what.scalar._scales import runs


def parted() -> Spec:
    shapes = {"w": (3, 8), "b": (5,), "conv": (2, 3, 2), "scalar": ()}
    parts, at = [], 0
    for name, shape in shapes.items():
        parts.append(Part(name, shape, at, "matrix" if len(shape) > 1 else "vector"))
        at = parts[-1].end
    return Spec(tuple(parts), 0, at, torch.float32)


def test_a_row_is_what_an_entry_of_the_first_dimension_holds() -> None:
    spec, codec = parted(), uniform(8, "row")
    assert list(runs(spec, "row")) == [(0, 3, 8), (24, 1, 5), (29, 2, 6), (41, 1, 1)]
    assert codec.nbytes(spec) == 42 + 4 * (3 + 1 + 2 + 1)
    x = torch.cat(
        [torch.full((m * size,), 10.0**i) for i, (_, m, size) in enumerate(runs(spec, "row"))]
    )
    x[::2] *= 0.5
    sent = codec.decode(codec.encode(x, spec, State(), SEAT), spec, State(), SEAT, 1)
    assert torch.allclose(sent, x, rtol=0.01)  # in one block the largest would drown the smallest


@given(low=st.integers(0, 42), high=st.integers(0, 42))
def test_a_row_that_is_cut_has_a_step_on_each_side(low: int, high: int) -> None:
    span = parted().span(min(low, high), max(low, high))
    found = list(runs(span, "row"))
    assert [begin for begin, _, _ in found] == [
        sum(m * size for _, m, size in found[:i]) for i in range(len(found))
    ]
    assert sum(m * size for _, m, size in found) == span.numel
    assert uniform(4, "row").nbytes(span) == math.ceil(span.numel / 2) + 4 * sum(
        m for _, m, _ in found
    )
