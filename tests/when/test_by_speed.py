from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cases import SCHEDULES
from thinwire.core import Schedule
from thinwire.errors import StrategyError
from thinwire.on import deltas, gradients, momentum, parameters
from thinwire.strategy import Strategy
from thinwire.testing import check_schedule
from thinwire.when import by_speed, delayed, every, warmup


@pytest.mark.parametrize("schedule", SCHEDULES["by_speed"], ids=repr)
def test_laws(schedule: Schedule) -> None:
    check_schedule(schedule)


@given(st.integers(2, 40), st.data())
def test_of_any_period_on_end_a_rank_takes_its_steps_evenly(
    period: int, data: st.DataObject
) -> None:
    steps, begin = data.draw(st.integers(1, period)), data.draw(st.integers(0, 1000))
    schedule = by_speed(every(period))
    worked = [step for step in range(begin, begin + period) if schedule.works(step, steps)]
    assert len(worked) == steps
    assert schedule.works(period * 7 - 1, steps), "everybody takes the last step of a period"
    gaps = {b - a for a, b in pairwise(worked)}
    assert max(gaps, default=0) - min(gaps, default=0) <= 1


def test_what_cannot_be_is_refused() -> None:
    assert Strategy(by_speed(delayed(1, every(4))), on=deltas())
    assert Strategy(by_speed(every(4)), on=parameters())
    with pytest.raises(StrategyError, match="a period of 1 step cannot be divided"):
        by_speed(every(1))
    with pytest.raises(StrategyError, match="it is by speed already"):
        by_speed(by_speed(every(2)))
    with pytest.raises(StrategyError, match="leave phase out"):
        by_speed(delayed(1, every(4, phase=0)))
    for when in (delayed(1, by_speed(every(4))), warmup(2, by_speed(every(4)))):
        with pytest.raises(StrategyError, match="goes around all other schedules"):
            Strategy(when, on=deltas())
    for on in (gradients(), momentum()):
        with pytest.raises(
            StrategyError, match=r"give slow ranks smaller batches and attach\(weight=…\)"
        ):
            Strategy(by_speed(every(4)), on=on)
