"""Talk at every n-th step.

On gradients, a step is a backward pass: G = sum of n micro-batches (gradient accumulation), so n times fewer bytes for an
n times larger batch. On deltas or parameters, a step is an optimiser step: n local steps (local SGD, DiLoCo).
"""

from __future__ import annotations

from dataclasses import dataclass

from thinwire.core import Schedule, Tick
from thinwire.errors import StrategyError


@dataclass(frozen=True)
class every(Schedule):
    """Launch and land every bucket at steps n-1, 2n-1, …

    Args:
        n: steps a period, at least 1. On gradients the n passes are summed, never divided by n.

    Raises:
        StrategyError: n < 1.

    Example:
        >>> [every(2).tick(step, buckets=3).launch for step in range(4)]
        [(), (0, 1, 2), (), (0, 1, 2)]
    """

    n: int = 1

    def __post_init__(self) -> None:
        if self.n < 1:
            raise StrategyError(f"every(n={self.n}): a period has at least 1 step; every(1) talks at each step")

    @property
    def period(self) -> int:
        return self.n

    def tick(self, step: int, buckets: int) -> Tick:
        all_buckets = tuple(range(buckets)) if (step + 1) % self.n == 0 else ()
        return Tick(launch=all_buckets, land=all_buckets)
