import pytest

from tests.how.flights import partners
from thinwire.core import Codec
from thinwire.errors import StrategyError
from thinwire.how import torus
from thinwire.strategy import Strategy
from thinwire.testing import check_route
from thinwire.what import cast, entropy, feedback, identity, lowrank, topk, uniform


@pytest.mark.parametrize(("x", "y"), [(1, 1), (2, 2), (3, 2), (2, 4), (1, 5), (7, 1), (3, 3)])
def test_laws(x: int, y: int) -> None:
    check_route(torus(x, y), identity(), worlds=[x * y])


@pytest.mark.parametrize(
    "codec", [cast(), feedback(uniform(4)), entropy(uniform(4)), feedback(lowrank(2))], ids=repr
)
@pytest.mark.parametrize(("x", "y"), [(3, 2), (1, 3), (3, 1)])
def test_laws_with_a_lossy_codec(x: int, y: int, codec: Codec) -> None:
    check_route(torus(x, y), codec, worlds=[x * y])


def test_each_talks_along_its_row_and_its_column() -> None:
    assert partners(torus(3, 2), identity(), 6) == {
        0: {1, 3},
        1: {2, 4},
        2: {0, 5},
        3: {4, 0},
        4: {5, 1},
        5: {3, 2},
    }


def test_a_world_of_another_size_is_refused_at_attach() -> None:
    with pytest.raises(
        StrategyError,
        match=r"3 by 2 are 6 ranks, and there are 8. Take torus\(2, 4\) or torus\(4, 2\)",
    ):
        torus(3, 2).groups(8)
    with pytest.raises(StrategyError, match=r"Take ring\(\)"):
        torus(3, 2).bind(7)


@pytest.mark.parametrize(("x", "y"), [(0, 2), (2, -1)])
def test_a_grid_has_rows(x: int, y: int) -> None:
    with pytest.raises(StrategyError, match="at least 1"):
        torus(x, y)


def test_what_drops_entries_is_refused() -> None:
    with pytest.raises(StrategyError, match=r"over torus\(x=2, y=2\): encoding a sum again"):
        Strategy(what=topk(0.1), how=torus(2, 2))
