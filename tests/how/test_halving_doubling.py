import pytest

from tests.how.flights import partners
from thinwire.core import Codec
from thinwire.errors import StrategyError
from thinwire.how import halving_doubling
from thinwire.strategy import Strategy
from thinwire.testing import check_route
from thinwire.what import cast, entropy, feedback, identity, lowrank, topk, uniform


def test_laws() -> None:
    check_route(halving_doubling(), identity())


@pytest.mark.parametrize(
    "codec", [cast(), feedback(uniform(4)), entropy(uniform(4)), feedback(lowrank(2))], ids=repr
)
def test_laws_with_a_lossy_codec(codec: Codec) -> None:
    check_route(halving_doubling(), codec, worlds=(2, 3, 6))


def test_partners_differ_in_one_bit_and_the_rest_fold_in() -> None:
    assert partners(halving_doubling(), identity(), 6) == {
        0: {1, 2, 4},
        1: {0, 3, 5},
        2: {0, 3},
        3: {1, 2},
        4: {0},
        5: {1},
    }


def test_steps_are_two_log_two() -> None:
    assert [len(halving_doubling().moves(0, world)) for world in (1, 2, 4, 8, 9)] == [0, 2, 4, 6, 8]


def test_what_drops_entries_is_refused() -> None:
    with pytest.raises(StrategyError, match=r"over halving_doubling\(\): encoding a sum again"):
        Strategy(what=topk(0.1), how=halving_doubling())
