"""What every route inherits, and the closed forms of a ring all-reduce."""

from thinwire.core import allreduce_messages, allreduce_nbytes


def test_a_ring_all_reduce_sends_two_shares_of_all_but_one() -> None:
    assert [allreduce_nbytes(100, world) for world in (1, 2, 4)] == [0.0, 100.0, 150.0]


def test_a_ring_all_reduce_of_nothing_sends_no_message() -> None:
    assert [allreduce_messages(100, world) for world in (1, 2, 4)] == [0, 2, 6]
    assert allreduce_messages(0, 4) == 0
