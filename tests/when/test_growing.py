from itertools import pairwise

import pytest

from tests.cases import SCHEDULES
from thinwire.core import Schedule
from thinwire.errors import StrategyError
from thinwire.on import deltas
from thinwire.strategy import Strategy
from thinwire.testing import check_schedule
from thinwire.when import delayed, growing, warmup


@pytest.mark.parametrize("schedule", SCHEDULES["growing"], ids=repr)
def test_laws(schedule: Schedule) -> None:
    check_schedule(schedule)


def rounds_of(schedule: Schedule, steps: int) -> list[int]:
    launches = [-1, *(step for step in range(steps) if schedule.tick(step, 1).launch)]
    return [after - before for before, after in pairwise(launches)]


@pytest.mark.parametrize(
    ("schedule", "lengths"),
    [
        (growing(1, 8), [1, 2, 4, 8, 8, 8]),
        (growing(2, 5, rounds=2), [2, 2, 4, 4, 5, 5]),
        (
            growing(3, 6, factor=1.1),
            [3, 3, 3, 3, 4, 4, 5, 5, 6, 6],
        ),  # 3, 3.3, 3.63, 3.99, 4.39, 4.83, 5.31, 5.85, 6.43
    ],
    ids=repr,
)
def test_rounds_grow_by_the_rule(schedule: growing, lengths: list[int]) -> None:
    assert rounds_of(schedule, sum(lengths)) == lengths
    assert (schedule.gap, schedule.period) == (lengths[0], lengths[-1])
    assert schedule.steady_from == sum(length for length in lengths if length < schedule.last)


def test_it_counts_from_the_end_of_a_warm_up() -> None:
    schedule = warmup(3, growing(1, 4))
    assert schedule.steady_from == 3 + 1 + 2
    assert rounds_of(schedule, 3 + 1 + 2 + 4) == [1, 1, 1, 1, 2, 4]


def test_a_delay_is_shorter_than_the_first_rounds() -> None:
    assert Strategy(delayed(1, growing(2, 8)), on=deltas())
    with pytest.raises(StrategyError, match="a delay below 2"):
        Strategy(delayed(2, growing(2, 8)), on=deltas())


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(StrategyError) as caught:
        growing(0, 0, rounds=0, factor=1.0)
    assert len(caught.value.reasons) == 4
    with pytest.raises(StrategyError, match=r"use every\(n\)"):
        growing(4, 4)
