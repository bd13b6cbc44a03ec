"""What every schedule promises of its launches and landings."""

import pytest

from tests.cases import SCHEDULES
from thinwire.core import Schedule

ALL = [schedule for schedules in SCHEDULES.values() for schedule in schedules]


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_no_more_flights_of_a_bucket_are_in_the_air_than_its_depth(schedule: Schedule) -> None:
    buckets = 2 * schedule.fragments
    in_the_air, most = [0] * buckets, 0
    for step in range(schedule.steady_from + 3 * (schedule.period + schedule.delay)):
        tick = schedule.tick(step, buckets)
        for bucket in tick.launch:
            in_the_air[bucket] += 1
        most = max(most, *in_the_air)
        for bucket in tick.land:
            in_the_air[bucket] -= 1
            assert in_the_air[bucket] >= 0, "landed before it was launched"
    assert 1 <= most <= schedule.depth


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_a_schedule_is_a_function_of_the_step(schedule: Schedule) -> None:
    buckets = 2 * schedule.fragments
    forwards = [schedule.tick(step, buckets) for step in range(40)]
    assert [schedule.tick(step, buckets) for step in reversed(range(40))] == forwards[::-1]
