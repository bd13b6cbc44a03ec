"""Local steps that grow in number: short rounds while ranks move fast, long ones once they have
settled.

Round by round the period H is `first`, …, times `factor` after every `rounds` rounds, up to `last`,
where it stays. Early on parameters change quickly and ranks drift apart fast; later, at lower
rates, the same drift takes more steps. (Stagewise local SGD, Shen et al. 2021, "STL-SGD",
arXiv:2006.06377; growing periods also in Haddadpour et al. 2019, arXiv:1910.13598.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from thinwire.core import Schedule, Tick
from thinwire.errors import StrategyError


@dataclass(frozen=True)
class growing(Schedule):
    """Every H steps, where H is the whole part of min(last, first · factor^j) in the j-th `rounds`
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
        begin, length = next(
            (begin, length) for begin, length in reversed(self._stages()) if begin <= step
        )
        all_buckets = tuple(range(buckets)) if (step - begin + 1) % length == 0 else ()
        return Tick(launch=all_buckets, land=all_buckets)

    def _stages(self) -> tuple[tuple[int, int], ...]:
        return _stages(self.first, self.last, self.rounds, self.factor)


@lru_cache(maxsize=64)
def _stages(first: int, last: int, rounds: int, factor: float) -> tuple[tuple[int, int], ...]:
    """(first step, steps of a round) of each length."""
    stages, begin, exact, length = [], 0, float(first), first
    while length < last:
        stages.append((begin, length))
        begin += rounds * length
        exact *= factor
        length = min(last, int(exact))
    return (*stages, (begin, last))
