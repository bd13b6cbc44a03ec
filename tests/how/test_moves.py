"""The moves of a ring: every block goes all the way round."""

import pytest

from thinwire.how._moves import ring


@pytest.mark.parametrize("n", [2, 3, 5])
def test_each_rank_sends_what_the_next_expects(n: int) -> None:
    blocks = [(j,) for j in range(n)]
    plans = [ring(range(n), index, blocks, raw=True) for index in range(n)]
    for half in (0, 1):
        for step in range(n - 1):
            for rank in range(n):
                (sent,) = plans[rank][half][step].send
                (received,) = plans[sent.peer][half][step].recv
                assert received.peer == rank
                assert (sent.parts, sent.wholes) == (received.parts, received.wholes)


def test_only_the_first_parts_are_as_ranks_encoded_them() -> None:
    scatter, gather = ring(range(3), 0, [(0,), (1,), (2,)], raw=True)
    assert [bool(message.raw) for move in scatter for message in move.recv] == [True, False]
    assert not any(message.raw for move in gather for message in move.recv)
