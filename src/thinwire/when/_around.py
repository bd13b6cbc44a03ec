"""A base for schedules around another: what a subclass leaves undefined is the inner one's."""

from __future__ import annotations

from thinwire.core import Schedule, Tick


class Around(Schedule):
    """A schedule around another, `inner`, which answers what a subclass leaves undefined."""

    inner: Schedule

    @property
    def period(self) -> int:
        return self.inner.period

    @property
    def gap(self) -> int:
        return self.inner.gap

    @property
    def steady_from(self) -> int:
        return self.inner.steady_from

    @property
    def delay(self) -> int:
        return self.inner.delay

    @property
    def fragments(self) -> int:
        return self.inner.fragments

    def tick(self, step: int, buckets: int) -> Tick:
        return self.inner.tick(step, buckets)
