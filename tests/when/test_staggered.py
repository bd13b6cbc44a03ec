import pytest

from tests.cases import SCHEDULES
from thinwire.core import Schedule
from thinwire.errors import StrategyError
from thinwire.testing import check_schedule
from thinwire.when import every, staggered


@pytest.mark.parametrize("schedule", SCHEDULES["staggered"], ids=repr)
def test_laws(schedule: Schedule) -> None:
    check_schedule(schedule)


def test_fragments_are_dealt_like_cards_and_spread_over_the_period() -> None:
    launches = [staggered(3, every(7)).tick(step, 7).launch for step in range(7)]
    assert launches == [(), (0, 3, 6), (), (1, 4), (), (), (2, 5)]


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        (0, "there is at least 1 fragment"),
        (5, "5 fragments cannot have a step each in a period of 4"),
    ],
)
def test_fragments_fit_the_period(parts: int, told: str) -> None:
    with pytest.raises(StrategyError, match=told):
        staggered(parts, every(4))
