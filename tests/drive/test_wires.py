"""Ways that messages share: max-min fairness, and what nothing limits."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinwire.drive._wires import Flow, Wires, allot
from thinwire.net import Transport, two_level

RATES = {"a": 9.0, "b": 2.0, "c": 7.0, "free": math.inf}


@given(
    st.lists(
        st.tuples(st.sets(st.sampled_from(sorted(RATES)), min_size=1), st.integers(1, 20)),
        min_size=1,
        max_size=8,
    )
)
def test_no_way_is_over_full_and_every_flow_meets_a_limit(
    drawn: list[tuple[set[str], int]],
) -> None:
    flows = [Flow(1.0, {way: RATES[way] for way in ways}, most, 1.0) for ways, most in drawn]
    allot(flows)
    used = {way: sum(f.rate_bytes_per_s for f in flows if way in f.ways) for way in RATES}
    assert all(used[way] <= RATES[way] * (1 + 1e-9) for way in RATES)
    for flow in flows:
        full = any(used[way] >= RATES[way] * (1 - 1e-9) for way in flow.ways)
        assert full or flow.rate_bytes_per_s == pytest.approx(flow.most_bytes_per_s)


def test_a_way_between_ranks_is_looked_up_once_with_its_bytes_a_second() -> None:
    wires = Wires(two_level(2, 1, None, 800.0), Transport(waits=True))
    assert wires.ways(0, 1)["node0", "core"] == 100.0
    assert wires.ways(0, 1)["up", "host0"] == math.inf
    assert wires.between(0, 1) is wires.between(0, 1)
    assert wires.between(0, 1).waits
