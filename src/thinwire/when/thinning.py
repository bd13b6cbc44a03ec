"""Take dense steps ever more rarely, and follow `inner` at all others.

It refreshes what must not be learned from compressed values, such as Adam's variance. The first
kappa steps are all dense, of the next 2 kappa every second, and so on up to step `until`: the j-th
and the next dense step have a distance of 2^(j // kappa).

Source: the variance of 0/1 Adam, Lu et al. 2022, arXiv:2202.06009. Differs from the paper: a
schedule for any target, without the paper's local steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from thinwire.core import Schedule, Tick
from thinwire.errors import StrategyError
from thinwire.when._around import Around


@dataclass(frozen=True)
class thinning(Around):
    """Launch densely at steps that grow rarer up to `until`; follow `inner` at all others.

    Args:
        until: no step from here on is dense; at least 1.
        inner: what happens at the other steps: `every(1)`, counted from step 0.
        kappa: how many dense steps go by before their distance doubles, at least 1.

    Raises:
        StrategyError: an argument outside the above, or an inner schedule of a longer period or
            with a delay.

    Example:
        >>> from thinwire.when import every
        >>> schedule = thinning(30, every(1), kappa=3)
        >>> [step for step in range(40) if schedule.tick(step, buckets=1).dense]
        [0, 1, 2, 3, 5, 7, 9, 13, 17, 21, 29]
    """

    until: int
    inner: Schedule
    kappa: int = 16

    def __post_init__(self) -> None:
        reasons = []
        if self.until < 1:
            reasons.append(
                f"thinning(until={self.until}): at least the first step is dense; without dense "
                f"steps use {self.inner!r} itself"
            )
        if self.kappa < 1:
            reasons.append(
                f"thinning(kappa={self.kappa}): at least 1 dense step goes by before their "
                "distance doubles"
            )
        if self.inner.period > 1 or self.inner.delay or self.inner.steady_from:
            reasons.append(
                f"thinning({self.until}, {self.inner!r}): dense steps come between those of "
                "every(1); no other inner schedule fits"
            )
        if reasons:
            raise StrategyError(reasons)

    @property
    def steady_from(self) -> int:
        return self.until

    def tick(self, step: int, buckets: int) -> Tick:
        if step < self.until and self._is_dense(step):
            everything = tuple(range(buckets))
            return Tick(everything, everything, dense=True)
        return super().tick(step, buckets)

    def _is_dense(self, step: int) -> bool:
        # 1. The block that the step falls in: distance 2^block, from step kappa · (2^block - 1) on.
        block = (step // self.kappa + 1).bit_length() - 1
        distance = 1 << block
        # 2. In the block every `distance`-th step is dense.
        return (step - self.kappa * (distance - 1)) % distance == 0
