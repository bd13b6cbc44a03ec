"""The transport's own all-reduce in a simulation: the steps of a ring."""

import torch

from thinwire.core import AllReduce, allreduce_nbytes
from thinwire.drive._simulation import _ring


def test_a_ring_has_two_steps_a_rank_and_neighbour() -> None:
    group = (2, 5, 7)
    for rank in group:
        steps = list(_ring(rank, AllReduce(torch.ones(6), group)))
        at = group.index(rank)
        assert len(steps) == 4
        assert {(step.to, step.source) for step in steps} == {(group[(at + 1) % 3], group[at - 1])}
        assert sum(step.nbytes for step in steps) == allreduce_nbytes(24, 3)


def test_nothing_to_add_takes_no_step() -> None:
    assert not list(_ring(0, AllReduce(torch.empty(0), (0, 1))))
    assert not list(_ring(0, AllReduce(torch.ones(3), (0,))))
