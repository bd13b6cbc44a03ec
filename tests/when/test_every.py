import pytest

from tests.cases import SCHEDULES
from thinwire.core import Schedule, Tick
from thinwire.errors import StrategyError
from thinwire.testing import check_schedule
from thinwire.when import every


@pytest.mark.parametrize("schedule", SCHEDULES["every"], ids=repr)
def test_laws(schedule: Schedule) -> None:
    check_schedule(schedule)


def test_all_buckets_talk_at_the_last_step_of_each_period() -> None:
    nothing, all_three = Tick(), Tick((0, 1, 2), (0, 1, 2))
    assert [every(3).tick(step, 3) for step in range(6)] == [nothing, nothing, all_three] * 2
    assert (every(3).period, every(3).gap, every(3).delay, every(3).depth, every(3).fragments) == (3, 3, 0, 1, 1)


@pytest.mark.parametrize("n", [0, -2])
def test_a_period_has_a_step(n: int) -> None:
    with pytest.raises(StrategyError, match=rf"every\(n={n}\): a period has at least 1 step"):
        every(n)
