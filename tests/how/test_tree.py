import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinwire.core import Codec
from thinwire.errors import StrategyError
from thinwire.how import tree
from thinwire.how.tree import trees, turns
from thinwire.strategy import Strategy
from thinwire.testing import check_route
from thinwire.what import cast, entropy, feedback, identity, lowrank, topk, uniform


@pytest.mark.parametrize("segments", [1, 4])
def test_laws(segments: int) -> None:
    check_route(tree(segments), identity())


@pytest.mark.parametrize(
    "codec", [cast(), feedback(uniform(4)), entropy(uniform(4)), feedback(lowrank(2))], ids=repr
)
def test_laws_with_a_lossy_codec(codec: Codec) -> None:
    check_route(tree(2), codec, worlds=(2, 3, 6))


@given(st.integers(2, 300))
def test_the_trees_complement_one_another(world: int) -> None:
    both = trees(world)
    assert max(each.height for each in both) == math.ceil(math.log2(world))
    for each in both:
        assert sum(parent is None for parent in each.parents) == 1
        assert all(
            each.depths[place] <= each.height for place in range(world)
        )  # each place hangs below the root
    children = [tuple(len(each.children[place]) for each in both) for place in range(world)]
    assert max(map(sum, children)) <= 2
    assert sum(min(pair) for pair in children) <= 1  # inside both: one place, in odd worlds
    assert all(
        one is None or one != other
        for one, other in zip(both[0].parents, both[1].parents, strict=True)
    )


@given(st.integers(2, 120))
def test_no_two_messages_of_a_turn_meet(world: int) -> None:
    both, slots = trees(world), turns(world)
    for place in range(world):
        up = [slots[t][place] for t in (0, 1) if both[t].parents[place] is not None]
        down = [slots[t][child] for t in (0, 1) for child in both[t].children[place]]
        assert len(set(up)) == len(up)
        assert len(set(down)) == len(down)


def test_segments_climb_one_behind_the_other() -> None:
    """Exchanges of a rank: as many as segments and levels, up and down, not their product."""
    height = trees(16)[0].height
    assert max(len(tree(8).moves(place, 16)) for place in range(16)) <= 2 * (height + 8 - 1)
    assert max(len(tree(1).moves(place, 16)) for place in range(16)) <= 2 * height


def test_no_segments_are_refused() -> None:
    with pytest.raises(StrategyError, match="at least 1 segment"):
        tree(0)


def test_what_drops_entries_is_refused() -> None:
    with pytest.raises(StrategyError, match=r"over tree\(segments=4\): encoding a sum again"):
        Strategy(what=topk(0.1), how=tree())
