import pytest

from tests.cases import SCHEDULES
from thinwire.core import Schedule
from thinwire.errors import StrategyError
from thinwire.testing import check_schedule
from thinwire.when import delayed, every, thinning, warmup


@pytest.mark.parametrize("schedule", SCHEDULES["thinning"], ids=repr)
def test_laws(schedule: Schedule) -> None:
    check_schedule(schedule)


@pytest.mark.parametrize("kappa", [1, 3, 16])
def test_dense_steps_lie_apart_by_the_papers_rule(kappa: int) -> None:
    """k(j+1) - k(j) = 2^(j // kappa), from step 0, up to `until`."""
    until, step, expected = 400, 0, []
    for j in range(until):
        expected.append(step)
        step += 2 ** (j // kappa)
    schedule = thinning(until, every(1), kappa)
    found = [step for step in range(2 * until) if schedule.tick(step, 3).dense]
    assert found == [step for step in expected if step < until]
    assert all(schedule.tick(step, 3).launch == (0, 1, 2) for step in range(until)), (
        "every step talks"
    )


@pytest.mark.parametrize("inner", [every(2), delayed(1, every(1)), warmup(3, every(1))], ids=repr)
def test_another_inner_schedule_is_refused(inner: Schedule) -> None:
    with pytest.raises(StrategyError, match="no other inner schedule fits"):
        thinning(9, inner)


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(StrategyError) as caught:
        thinning(0, every(2), kappa=0)
    assert len(caught.value.reasons) == 3
