import pytest

from tests.cases import SCHEDULES
from thinwire.core import Schedule
from thinwire.errors import StrategyError
from thinwire.testing import check_schedule
from thinwire.when import delayed, every, staggered, warmup


@pytest.mark.parametrize("schedule", SCHEDULES["warmup"], ids=repr)
def test_laws(schedule: Schedule) -> None:
    check_schedule(schedule)


def test_dense_at_every_step_then_the_inner_schedule_from_its_own_start() -> None:
    ticks = [warmup(2, every(3)).tick(step, 2) for step in range(8)]
    assert [tick.dense for tick in ticks] == [True] * 2 + [False] * 6
    assert [tick.launch for tick in ticks] == [(0, 1), (0, 1), (), (), (0, 1), (), (), (0, 1)]


def test_period_is_the_inner_ones_and_gap_the_warm_ups() -> None:
    assert (warmup(2, every(3)).period, warmup(2, every(3)).gap) == (3, 1)
    assert (warmup(0, every(3)).period, warmup(0, every(3)).gap) == (3, 3)
    assert warmup(2, staggered(2, every(4))).fragments == 2


def test_a_delay_goes_around_it() -> None:
    with pytest.raises(StrategyError, match=r"write delayed\(tau, warmup\(steps, …\)\)"):
        warmup(2, delayed(1, every(1)))
    with pytest.raises(StrategyError, match="at least 0 steps"):
        warmup(-1, every(1))
