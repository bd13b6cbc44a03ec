"""Make rounds of local steps longer as training goes on, so that early drift stays small.

Round by round the period H is `first`, and grows by `factor` after every `rounds` rounds, up to
`last`. Early on parameters change quickly and ranks drift fast; later, at lower rates, the same
drift takes more steps.

Source: stagewise local SGD, Shen et al. 2021, "STL-SGD", arXiv:2006.06377; growing periods also in
Haddadpour et al. 2019, arXiv:1910.13598. Differs from the papers: stages count rounds, not steps,
and the learning rate stays the user's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from thinwire.core import Schedule, Tick
from thinwire.errors import StrategyError


@dataclass(frozen=True)
class growing(Schedule):
    """Launch and land every H steps, H = floor(min(last, first · factor^j)) in the j-th `rounds`
    rounds.

    Args:
        first: the steps of the first rounds, at least 1.
        last: the steps of all rounds at the end, more than `first`.
        rounds: how many rounds of each length, at least 1.
        factor: the growth from one length to the next, above 1.

    Raises:
        StrategyError: an argument outside the above.

    Example:
        >>> schedule = growing(1, 4)
        >>> [step for step in range(20) if schedule.tick(step, buckets=1).launch]
        [0, 2, 6, 10, 14, 18]
    """

    first: int
    last: int
    rounds: int = 1
    factor: float = 2.0

    def __post_init__(self) -> None:
        # All that is wrong is reported at once.
        reasons = []
        if self.first < 1:
            reasons.append(f"growing(first={self.first}): a round has at least 1 step")
        if self.last <= self.first:
            reasons.append(
                f"growing({self.first}, {self.last}): the last rounds are longer than the first; "
                "for rounds alike use every(n)"
            )
        if self.rounds < 1:
            reasons.append(
                f"growing(rounds={self.rounds}): there is at least 1 round of each length"
            )
        if not 1 < self.factor < math.inf:
            reasons.append(f"growing(factor={self.factor}): a growth is above 1, and finite")
        if reasons:
            raise StrategyError(reasons)

    @property
    def period(self) -> int:
        return self.last

    @property
    def gap(self) -> int:
        return self.first

    @property
    def steady_from(self) -> int:
        return self._stages()[-1][0]

    def tick(self, step: int, buckets: int) -> Tick:
        # 1. The stage that this step falls in: its first step, and the steps of its rounds.
        begin, length = next(
            (begin, length) for begin, length in reversed(self._stages()) if begin <= step
        )
        # 2. The last step of each of its rounds launches and lands all buckets.
        all_buckets = tuple(range(buckets)) if (step - begin + 1) % length == 0 else ()
        return Tick(launch=all_buckets, land=all_buckets)

    def _stages(self) -> tuple[tuple[int, int], ...]:
        return _stages(self.first, self.last, self.rounds, self.factor)


@lru_cache(maxsize=64)
def _stages(first: int, last: int, rounds: int, factor: float) -> tuple[tuple[int, int], ...]:
    """Return the first step and the steps of a round, of each stage."""
    stages, begin, exact, length = [], 0, float(first), first
    # `exact` is never rounded, so that a factor of 1.1 grows at all from short rounds.
    while length < last:
        stages.append((begin, length))
        begin += rounds * length
        exact *= factor
        length = min(last, int(exact))
    return (*stages, (begin, last))
