"""Each schedule here breaks one law, and the check must name that law."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count

import pytest

from thinwire.core import Schedule, Tick
from thinwire.testing import check_schedule
from thinwire.when import delayed, every, staggered


@dataclass(frozen=True)
class At:
    """A tick of the inner schedule, where it stands, and for how many buckets."""

    step: int
    buckets: int
    tick: Tick


@dataclass(frozen=True)
class _broken(Schedule):
    """`inner`, its ticks bent."""

    inner: Schedule
    bend: Callable[[At], Tick] = lambda at: at.tick
    deep: int = 0
    parts: int = 0

    period = property(lambda self: self.inner.period)  # type: ignore[assignment]
    delay = property(lambda self: self.inner.delay)  # type: ignore[assignment]
    depth = property(lambda self: self.deep or self.inner.depth)  # type: ignore[assignment]
    fragments = property(lambda self: self.parts or self.inner.fragments)  # type: ignore[assignment]

    def tick(self, step: int, buckets: int) -> Tick:
        return self.bend(At(step, buckets, self.inner.tick(step, buckets)))


_calls = count()
LATE = delayed(1, every(3))
LANDS, ONCE, SAME, THERE = (
    "every launch lands exactly `delay` steps later",
    "a bucket launches once a period",
    "a bucket launches at one step of its period",
    "buckets exist, in order, once each",
)
BROKEN: dict[str, tuple[Schedule, str]] = {
    "never lands": (_broken(every(2), lambda at: replace(at.tick, land=())), LANDS),
    "lands twice": (
        _broken(LATE, lambda at: replace(at.tick, land=at.tick.land or tuple(range(at.buckets)))),
        LANDS,
    ),
    "lands late": (
        _broken(
            LATE,
            lambda at: replace(at.tick, land=delayed(2, every(3)).tick(at.step, at.buckets).land),
        ),
        LANDS,
    ),
    "stops": (_broken(every(2), lambda at: at.tick if at.step < 5 else Tick()), ONCE),
    "forgets a bucket": (
        _broken(every(2), lambda at: Tick(at.tick.launch[:1], at.tick.land[:1])),
        ONCE,
    ),
    "too often": (
        _broken(every(4), lambda at: every(2).tick(at.step, at.buckets)),
        "launches are never closer than `gap`",
    ),
    "drifts": (
        _broken(
            every(4), lambda at: every(4, phase=2 if at.step < 4 else 3).tick(at.step, at.buckets)
        ),
        SAME,
    ),
    "a bucket too many": (
        _broken(every(2), lambda at: Tick((0, at.buckets), (0, at.buckets))),
        THERE,
    ),
    "out of order": (
        _broken(every(1), lambda at: Tick(at.tick.launch[::-1], at.tick.land[::-1])),
        THERE,
    ),
    "impure": (
        _broken(every(1), lambda at: replace(at.tick, dense=next(_calls) % 3 == 1)),
        "a tick depends on its step alone",
    ),
    "dense for ever": (
        _broken(every(2), lambda at: replace(at.tick, dense=at.step >= 3)),
        "nothing is dense once it is steady",
    ),
    "shallow": (_broken(delayed(2, every(1)), deep=2), "no more flights in the air than `depth`"),
    "other fragments": (
        _broken(staggered(2, every(4)), parts=3),
        "fragments says how many groups of buckets there are",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_schedule_is_caught(name: str) -> None:
    schedule, law = BROKEN[name]
    with pytest.raises(AssertionError) as caught:
        check_schedule(schedule)
    assert f"breaks the law {law!r} on " in str(caught.value)
