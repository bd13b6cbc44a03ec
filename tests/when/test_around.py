"""A schedule around another is the other one, but for what it says itself."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from thinwire.core import Schedule, Tick
from thinwire.when import delayed, every, staggered
from thinwire.when._around import Around

INNERS = (every(3), delayed(2, every(4)), staggered(2, every(4)))


@dataclass(frozen=True)
class plain(Around):
    inner: Schedule


@dataclass(frozen=True)
class late(Around):
    inner: Schedule

    @property
    def steady_from(self) -> int:
        return self.inner.steady_from + 10


@pytest.mark.parametrize("inner", INNERS, ids=repr)
def test_it_is_the_inner_one_where_it_says_nothing(inner: Schedule) -> None:
    around = plain(inner)
    for name in ("period", "gap", "steady_from", "delay", "fragments", "depth"):
        assert getattr(around, name) == getattr(inner, name), name
    ticks = [around.tick(step, 4) for step in range(24)]
    assert ticks == [inner.tick(step, 4) for step in range(24)]
    assert any(tick != Tick() for tick in ticks)


@pytest.mark.parametrize("inner", INNERS, ids=repr)
def test_what_it_says_itself_counts(inner: Schedule) -> None:
    assert late(inner).steady_from == inner.steady_from + 10
    assert late(inner).period == inner.period
