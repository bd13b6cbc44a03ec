"""Watch whether the wire keeps the speed that it had when lanes and routes were chosen for it.

Steps, at each landing:
    1. note its bytes and the seconds of its hops; the first FEW landings of as many bytes are the
       plan
    2. where the median of the last FEW leaves the plan by half, this rank votes so, with the status
       of its next launch
    3. once every rank votes so for one launch, all of them measure anew (`retune.py`)
A rank that is slow makes the others wait, but not itself: so it never votes, and a slow computer is
not taken for a slow wire.
"""

from __future__ import annotations

import math
import statistics
from collections import deque

FEW = 5
MOST_PATIENCE = 80
SLOWER, FASTER = 0.65, 1.55  # of the plan's speed: half and twice, less what a measurement is off
LEAST_S = 0.05  # of a landing's hops: below that, a busy moment of a host counts for more
_KINDS = 8  # of sizes, for each factor of e


class WireWatch:
    """One rank's record of landings.

    must_measure: every rank has voted that the wire has left the plan, so that all measure anew.
    """

    def __init__(self) -> None:
        self.must_measure = False
        self._patience = FEW
        self._plans: dict[int, list[float]] = {}
        self._last: dict[int, deque[float]] = {}
        self._kind = 0

    def note(self, nbytes: float, seconds: float) -> None:
        """Note the bytes of a landing and the seconds of its hops."""
        if not nbytes or not seconds:
            return
        # Landings of other sizes, such as those of dense ticks, have a plan of their own.
        self._kind = round(_KINDS * math.log(nbytes))
        plan = self._plans.setdefault(self._kind, [])
        if len(plan) < self._patience:
            plan.append(seconds / nbytes)
            return
        self._last.setdefault(self._kind, deque(maxlen=FEW)).append(seconds / nbytes)
        if statistics.median(plan) * nbytes < LEAST_S:
            self._last.clear()

    @property
    def speed(self) -> float:
        """Return the speed of the last landings over that of the plan; 1 where it is not known."""
        last = self._last.get(self._kind, ())
        if len(last) < FEW:
            return 1.0
        return statistics.median(self._plans[self._kind]) / statistics.median(last)

    @property
    def as_planned(self) -> bool:
        """Return this rank's vote: the wire is about as fast as planned."""
        return SLOWER <= self.speed <= FASTER

    def agreed(self, as_planned: bool) -> None:
        """Take what ranks have agreed on: whether some rank finds the plan kept."""
        self.must_measure = self.must_measure or not as_planned

    def restart(self, changed: bool) -> None:
        """Begin anew after a measurement; after one that found no change, with more patience."""
        self.must_measure = False
        self._plans.clear()
        self._last.clear()
        self._patience = FEW if changed else min(2 * self._patience, MOST_PATIENCE)
