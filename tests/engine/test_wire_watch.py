"""A wire that leaves the plan by half is noticed; noise and other sizes are not."""

from __future__ import annotations

import pytest

from thinwire.engine.wire_watch import FEW, MOST_PATIENCE, WireWatch

MB = 1e6


def noted(watch: WireWatch, seconds: float, times: int = FEW, nbytes: float = MB) -> None:
    for _ in range(times):
        watch.note(nbytes, seconds)


@pytest.mark.parametrize(
    ("seconds", "kept"), [(0.1, True), (0.14, True), (0.2, False), (0.05, False)]
)
def test_half_and_twice_the_speed_leave_the_plan(seconds: float, kept: bool) -> None:
    watch = WireWatch()
    noted(watch, 0.1)
    noted(watch, seconds)
    assert watch.as_planned is kept
    assert watch.speed == pytest.approx(0.1 / seconds)


def test_a_few_slow_landings_are_noise() -> None:
    watch = WireWatch()
    noted(watch, 0.1)
    noted(watch, 0.1)
    noted(watch, 1.0, times=FEW // 2)
    assert watch.as_planned


def test_other_sizes_have_a_plan_of_their_own_and_short_landings_none() -> None:
    watch = WireWatch()
    noted(watch, 0.1)
    noted(watch, 0.9, nbytes=10 * MB)
    assert watch.as_planned
    noted(watch, 0.9, nbytes=10 * MB)
    assert watch.as_planned
    noted(watch, 2.0, nbytes=10 * MB)
    assert not watch.as_planned
    short = WireWatch()
    noted(short, 0.001)
    noted(short, 0.04)
    assert short.as_planned
    short.note(0, 1.0)
    assert short.speed == 1.0


def test_it_is_due_once_no_rank_finds_the_plan_kept_and_grows_patient() -> None:
    watch = WireWatch()
    watch.agreed(as_planned=True)
    assert not watch.must_measure
    watch.agreed(as_planned=False)
    watch.agreed(as_planned=True)
    assert watch.must_measure
    watch.restart(changed=False)
    assert not watch.must_measure
    noted(watch, 0.1, times=2 * FEW)
    noted(watch, 0.3)
    assert not watch.as_planned
    for _ in range(9):
        watch.restart(changed=False)
    noted(watch, 0.1, times=MOST_PATIENCE)
    noted(watch, 0.3)
    assert not watch.as_planned
    watch.restart(changed=True)
    noted(watch, 0.1)
    noted(watch, 0.3)
    assert not watch.as_planned
