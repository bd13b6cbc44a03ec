"""Talk densely at every step for a while, then as `inner` says.

Early gradients change fast and are large; compressing or skipping them costs most. 1-bit Adam (Tang
et al. 2021, arXiv:2102.02888) and PowerSGD in practice start dense; post-local SGD (Lin et al.
2020, arXiv:1808.07217) is `warmup(n, every(H))` on parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

from thinwire.core import Schedule, Tick
from thinwire.errors import StrategyError
from thinwire.when._around import Around


@dataclass(frozen=True)
class warmup(Around):
    """`steps` dense steps (exact values, every step), then `inner` counted from its own step 0.

    Args:
        steps: dense steps, at least 0.
        inner: what follows.

    Raises:
        StrategyError: steps < 0, or `inner` is delayed (delay the whole instead).

    Example:
        >>> from thinwire.when import every
        >>> [(t.dense, t.launch) for t in (warmup(1, every(2)).tick(step, buckets=1) for step in range(3))]
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
        return super().tick(step - self.steps, buckets)
