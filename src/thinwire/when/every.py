"""Communicate at every n-th step.

On gradients a step is a backward pass: the sum of n micro-batches travels (gradient accumulation),
n times fewer bytes for an n times larger batch. On deltas or parameters a step is an optimiser
step: n local steps (local SGD, DiLoCo).

Source: local SGD, Stich 2019, arXiv:1805.09767. Differs from the paper: nothing in the clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from thinwire.core import Schedule, Tick
from thinwire.core.component import spelled_out
from thinwire.errors import StrategyError


@dataclass(frozen=True, repr=False)
class every(Schedule):
    """Launch and land every bucket at steps n-1, 2n-1, …; with a phase p at p, p+n, p+2n, …

    Args:
        n: steps a period, at least 1. On gradients the n passes are summed, never divided by n.
        phase: the first of these steps, from 0 to n-1, counted from the end of a warm-up. `None` is
            n-1, so that the first round has n steps like all others. torch's post-local SGD has
            phase 0. torchft's DiLoCo lands at n-1 what it launched tau steps before, which is
            `delayed(tau, every(n, phase=n - 1 - tau))`.

    Raises:
        StrategyError: n < 1, or a phase outside the period.

    Example:
        >>> [every(2).tick(step, buckets=3).launch for step in range(4)]
        [(), (0, 1, 2), (), (0, 1, 2)]
        >>> [step for step in range(12) if every(4, phase=0).tick(step, buckets=1).launch]
        [0, 4, 8]
    """

    n: int = 1
    phase: int | None = None

    def __post_init__(self) -> None:
        if self.n < 1:
            raise StrategyError(f"every(n={self.n}): a period has at least 1 step, as in every(1)")
        if self.phase is not None and not 0 <= self.phase < self.n:
            raise StrategyError(
                f"every({self.n}, phase={self.phase}): a phase is a step of the period, from 0 to "
                f"{self.n - 1}; None is {self.n - 1}"
            )
        # Saved states and ranks are compared by their settings, so one schedule has one spelling.
        if self.phase == self.n - 1:
            object.__setattr__(self, "phase", None)

    def __repr__(self) -> str:
        return spelled_out(self, 1)

    @property
    def closes_rounds(self) -> bool:
        return self.phase is None

    @property
    def first(self) -> int:
        """Return the first step at which it launches."""
        return self.n - 1 if self.phase is None else self.phase

    @property
    def period(self) -> int:
        return self.n

    def tick(self, step: int, buckets: int) -> Tick:
        all_buckets = tuple(range(buckets)) if step % self.n == self.first else ()
        return Tick(launch=all_buckets, land=all_buckets)
