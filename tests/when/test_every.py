import pytest

from tests.cases import SCHEDULES
from thinwire.core import Schedule, Tick
from thinwire.errors import StrategyError
from thinwire.strategy import Strategy
from thinwire.testing import check_schedule
from thinwire.when import every


@pytest.mark.parametrize("schedule", SCHEDULES["every"], ids=repr)
def test_laws(schedule: Schedule) -> None:
    check_schedule(schedule)


def test_all_buckets_talk_at_the_last_step_of_each_period() -> None:
    nothing, all_three = Tick(), Tick((0, 1, 2), (0, 1, 2))
    assert [every(3).tick(step, 3) for step in range(6)] == [nothing, nothing, all_three] * 2
    assert (every(3).period, every(3).gap, every(3).delay, every(3).depth, every(3).fragments) == (
        3,
        3,
        0,
        1,
        1,
    )


@pytest.mark.parametrize("n", [0, -2])
def test_a_period_has_a_step(n: int) -> None:
    with pytest.raises(StrategyError, match=rf"every\(n={n}\): a period has at least 1 step"):
        every(n)


def test_a_phase_is_the_first_step_that_talks() -> None:
    assert [step for step in range(12) if every(4, phase=1).tick(step, 2).launch == (0, 1)] == [
        1,
        5,
        9,
    ]


def test_the_last_step_of_a_period_is_the_default() -> None:
    """One schedule has one name: states that were saved before there were phases are of it."""
    assert every(4, phase=3) == every(4)
    assert repr(every(4, phase=3)) == repr(every(4)) == "every(n=4)"
    assert every(1, phase=0) == every()
    assert repr(every(4, phase=0)) == "every(n=4, phase=0)"
    for when in (every(4), every(4, phase=0)):
        assert Strategy.from_toml(Strategy(when).to_toml()).when == when


@pytest.mark.parametrize("phase", [-1, 4, 7])
def test_a_phase_lies_in_the_period(phase: int) -> None:
    with pytest.raises(
        StrategyError,
        match=rf"every\(4, phase={phase}\): a phase is a step of the period, from 0 to 3",
    ):
        every(4, phase=phase)


def test_a_phase_is_a_whole_number() -> None:
    with pytest.raises(StrategyError, match=r"phase=1\.5"):
        every(4, phase=1.5)  # type: ignore[arg-type]
