"""Apply each mean tau steps after its launch: w(t+1) = w(t) - eta · mean g(t - tau).

The wire works during tau whole steps, so compute hides it while tau steps outlast the transfer. The
price is staleness: on gradients the largest stable rate falls with tau.

Source: Zinkevich, Langford, Smola 2009, "Slow learners are fast"; on deltas, Streaming DiLoCo,
Douillard et al. 2025, arXiv:2501.18512. Differs from the first: the mean of all ranks is applied at
one delay, where the paper applies each worker's gradient alone, round-robin.
"""

from __future__ import annotations

from dataclasses import dataclass

from thinwire.core import Schedule, Tick
from thinwire.errors import StrategyError
from thinwire.when._around import Around


@dataclass(frozen=True)
class delayed(Around):
    """Land each launch of `inner` tau steps later; the first tau steps land nothing.

    Args:
        tau: steps from launch to landing, at least 0.
        inner: the schedule of launches; a dense launch (of `warmup`) is delayed like any other.

    Raises:
        StrategyError: tau < 0, or `inner` is delayed itself.

    Example:
        >>> from thinwire.when import every
        >>> [delayed(1, every(2)).tick(step, buckets=1).land for step in range(5)]
        [(), (), (0,), (), (0,)]
    """

    tau: int
    inner: Schedule

    def __post_init__(self) -> None:
        if self.tau < 0:
            raise StrategyError(
                f"delayed(tau={self.tau}): a landing cannot come before its launch; tau is at "
                "least 0"
            )
        if self.inner.delay:
            raise StrategyError(
                f"delayed({self.tau}, {self.inner!r}): the inner schedule is delayed itself; add "
                "the two delays up"
            )

    @property
    def delay(self) -> int:
        return self.tau

    def tick(self, step: int, buckets: int) -> Tick:
        now = self.inner.tick(step, buckets)
        # What lands now was launched tau steps ago; before step tau nothing has been.
        land = self.inner.tick(step - self.tau, buckets).land if step >= self.tau else ()
        return Tick(now.launch, land, now.dense)
