"""Spread the launches of a period over its steps: the peak falls, the total stays.

Buckets are dealt into fragments (bucket b to fragment b mod parts), and each fragment communicates
at its own step of the period.

Source: Streaming DiLoCo, Douillard et al. 2025, arXiv:2501.18512. Differs from the paper: fragments
are dealt from parameters of even size, where the paper's are sets of whole layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from thinwire.core import Schedule, Tick
from thinwire.errors import StrategyError
from thinwire.when.every import every


@dataclass(frozen=True)
class staggered(Schedule):
    """Launch and land fragment p of `parts` at the steps t with (t + 1) mod n = (p + 1) n / parts
    mod n.

    With `every(n, phase)` within, all come n - 1 - phase steps earlier; those before step 0 come a
    period later.

    Args:
        parts: fragments, from 1 to the period.
        inner: the period, as `every(n)`; write `delayed(tau, staggered(…))` and `warmup(steps,
            staggered(…))`, not the other way round.

    Raises:
        StrategyError: parts < 1, more fragments than steps in a period, or another schedule within.

    Example:
        >>> [staggered(2, every(4)).tick(step, buckets=3).launch for step in range(4)]
        [(), (0, 2), (), (1,)]
    """

    parts: int
    inner: every

    def __post_init__(self) -> None:
        if self.parts < 1:
            raise StrategyError(f"staggered(parts={self.parts}): there is at least 1 fragment")
        if self.parts > self.inner.n:
            message = (
                f"staggered({self.parts}, {self.inner!r}): {self.parts} fragments cannot have a "
                f"step each in a period of {self.inner.n}"
            )
            raise StrategyError(
                f"{message}; take at most {self.inner.n} fragments or a longer period"
            )

    @property
    def period(self) -> int:
        return self.inner.n

    @property
    def fragments(self) -> int:
        return self.parts

    def tick(self, step: int, buckets: int) -> Tick:
        n = self.inner.n
        # 1. Which fragments have their step now: fragment p's comes (p + 1) / parts of a period on.
        fragments_now = {
            p
            for p in range(self.parts)
            if (step - self.inner.first) % n == (p + 1) * n // self.parts % n
        }
        # 2. Their buckets launch and land.
        launch = tuple(bucket for bucket in range(buckets) if bucket % self.parts in fragments_now)
        return Tick(launch, launch)
