import pytest

from tests.cases import SCHEDULES
from thinwire.core import Schedule
from thinwire.errors import StrategyError
from thinwire.testing import check_schedule
from thinwire.when import delayed, every, warmup


@pytest.mark.parametrize("schedule", SCHEDULES["delayed"], ids=repr)
def test_laws(schedule: Schedule) -> None:
    check_schedule(schedule)


def test_the_first_tau_steps_land_nothing() -> None:
    ticks = [delayed(2, every(1)).tick(step, 1) for step in range(4)]
    assert [(tick.launch, tick.land) for tick in ticks] == [
        ((0,), ()),
        ((0,), ()),
        ((0,), (0,)),
        ((0,), (0,)),
    ]


@pytest.mark.parametrize(
    ("schedule", "depth"),
    [
        (delayed(0, every(1)), 1),
        (delayed(2, every(1)), 3),
        (delayed(5, every(3)), 2),
        (delayed(5, every(6)), 1),
        (delayed(2, warmup(1, every(9))), 3),
    ],
    ids=repr,
)
def test_flights_in_the_air(schedule: delayed, depth: int) -> None:
    assert schedule.depth == depth


def test_a_delay_is_not_negative_and_there_is_one() -> None:
    with pytest.raises(StrategyError, match="a landing cannot come before its launch"):
        delayed(-1, every(1))
    with pytest.raises(StrategyError, match="add the two delays up"):
        delayed(1, delayed(2, every(1)))
