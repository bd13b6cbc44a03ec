"""Bits given out to parts."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from thinwire.what.scalar._allocate import _moves, allocate


@given(
    errors=st.lists(st.lists(st.floats(0, 100), min_size=4, max_size=4), min_size=1, max_size=5),
    prices=st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=5, max_size=5),
    room=st.integers(0, 60),
)
def test_the_allocation_is_within_a_move_of_the_best(
    errors: list[list[float]], prices: list[list[int]], room: int
) -> None:
    worth = torch.tensor(errors, dtype=torch.float64)
    costs = torch.tensor([[0, *itertools.accumulate(each)] for each in prices[: len(errors)]])
    picked = allocate(worth, costs, room)
    assert int(costs.gather(1, picked[:, None]).sum()) <= room
    everyone = range(len(errors))
    best = min(
        sum(errors[p][o] for p, o in enumerate(options))
        for options in itertools.product(range(4), repeat=len(errors))
        if sum(int(costs[p, o]) for p, o in enumerate(options)) <= room
    )
    _, _, rates, paid = _moves(worth, costs)
    order = rates.argsort(descending=True, stable=True)
    rates, paid = rates[order], paid[order]
    missed = (paid.cumsum(0) > room).nonzero()
    slack = float(rates[missed[0]] * paid[missed[0]]) if len(missed) else 0.0
    assert best - 1e-9 <= sum(errors[p][int(picked[p])] for p in everyone) <= best + slack + 1e-6
