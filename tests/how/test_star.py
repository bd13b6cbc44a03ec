"""The order in which messages to owners leave: no two meet at one owner."""

import pytest

from thinwire.how._star import _away, _slots


@pytest.mark.parametrize("world", [2, 3, 5, 8])
def test_where_all_own_each_round_has_another_owner_for_each_rank(world: int) -> None:
    owned = {rank: rank for rank in range(world)}
    order = [_away(rank, world, owned) for rank in range(world)]
    for turn in range(world - 1):
        assert len({order[rank][turn] for rank in range(world)}) == world


def test_where_few_own_ranks_start_at_different_owners() -> None:
    owned = {0: 0, 1: 1}
    firsts = [_away(rank, 6, owned)[0] for rank in (2, 3, 4, 5)]
    assert sorted(firsts) == [0, 0, 1, 1]


@pytest.mark.parametrize(("world", "owners"), [(3, (0, 1)), (5, (0, 1, 2)), (4, (0, 1, 2, 3))])
def test_in_slots_each_rank_sends_what_its_peer_expects(
    world: int, owners: tuple[int, ...]
) -> None:
    owned = {owner: j for j, owner in enumerate(owners)}
    sent, received = set(), set()
    for rank in range(world):
        for move in _slots(rank, world, owned):
            sent |= {(rank, message.peer, message.parts, message.wholes) for message in move.send}
            received |= {
                (message.peer, rank, message.parts, message.wholes) for message in move.recv
            }
    assert sent == received
    assert len(sent) == 2 * len(owners) * (world - 1)
