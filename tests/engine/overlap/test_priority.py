"""The order in which slices are sent for the forward pass."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from thinwire.core import Stage
from thinwire.engine.overlap.priority import busy, by_need


@given(
    st.lists(
        st.tuples(st.floats(0, 10), st.floats(0, 5), st.integers(1, 4), st.integers(0, 5)),
        min_size=1,
        max_size=6,
    ),
)
def test_a_plan_sends_everything_once_and_never_waits_while_something_is_full(buckets):
    full, takes, slices, needed = ([each[i] for each in buckets] for i in range(4))
    order = by_need(full, takes, slices, needed)
    assert sorted(order) == sorted(
        index for index, count in enumerate(slices) for _ in range(count)
    )
    now, left = 0.0, list(slices)
    for index in order:
        ready = [other for other, count in enumerate(left) if count and full[other] <= now]
        if ready:
            assert index in ready
            assert needed[index] == min(needed[other] for other in ready)
        now = max(now, full[index]) + takes[index]
        left[index] -= 1


def test_busy_is_the_union_of_stages():
    stages = [
        Stage("wire", 0.0, 2.0),
        Stage("encode", 1.0, 3.0),
        Stage("wire", 5.0, 6.0),
        Stage("wire", 5.5, 5.7),
    ]
    assert busy(stages) == 4.0
    assert busy([]) == 0.0
