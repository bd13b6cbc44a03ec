"""Communicate densely at every step for a while, then follow `inner`.

Early gradients are large and change fast, so compressing or skipping them costs most.

Source: 1-bit Adam, Tang et al. 2021, arXiv:2102.02888; post-local SGD, Lin et al. 2020,
arXiv:1808.07217, which is `warmup(n, every(H))` on parameters. Differs from the papers: nothing is
frozen when the warm-up ends (the target `momentum` does that), and on parameters the dense phase
averages parameters, where post-local SGD averages gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

from thinwire.core import Schedule, Tick
from thinwire.errors import StrategyError
from thinwire.when._around import Around


@dataclass(frozen=True)
class warmup(Around):
    """Launch exact values at each of `steps` steps, then follow `inner` from its own step 0.

    Args:
        steps: dense steps, at least 0.
        inner: what follows.

    Raises:
        StrategyError: steps < 0, or `inner` is delayed (delay the whole instead).

    Example:
        >>> from thinwire.when import every
        >>> ticks = [warmup(1, every(2)).tick(step, buckets=1) for step in range(3)]
        >>> [(tick.dense, tick.launch) for tick in ticks]
        [(True, (0,)), (False, ()), (False, (0,))]
    """

    steps: int
    inner: Schedule

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise StrategyError(f"warmup(steps={self.steps}): at least 0 steps")
        if self.inner.delay:
            raise StrategyError(
                f"warmup({self.steps}, {self.inner!r}): write delayed(tau, warmup(steps, …)), so "
                "that one delay holds throughout"
            )

    @property
    def gap(self) -> int:
        return 1 if self.steps else self.inner.gap

    @property
    def steady_from(self) -> int:
        return self.steps + self.inner.steady_from

    def tick(self, step: int, buckets: int) -> Tick:
        if step < self.steps:
            everything = tuple(range(buckets))
            return Tick(everything, everything, dense=True)
        # The inner schedule counts from the end of the warm-up.
        return super().tick(step - self.steps, buckets)
