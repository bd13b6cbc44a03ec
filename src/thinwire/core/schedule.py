"""Define schedules: when to launch and to land, as a pure function of the step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from thinwire.core.component import Component
from thinwire.core.spec import Ranks


@dataclass(frozen=True, slots=True)
class Tick:
    """A step's launches and landings, by bucket number.

    dense: launches go uncompressed (identity, native).
    """

    launch: Ranks = ()
    land: Ranks = ()
    dense: bool = False


class Schedule(Component, ABC):
    """A schedule of communication: pure in the step, so ranks cannot disagree."""

    kind: ClassVar[str] = "when"

    @property
    @abstractmethod
    def period(self) -> int:
        """Return the steps from one launch of a bucket to its next, from step `steady_from` on.

        Its phase, the step of the period, stays the same.
        """

    @property
    def gap(self) -> int:
        """Return the fewest steps between two launches of a bucket.

        It is 1 in a warm-up, and less than the period while that grows.
        """
        return self.period

    @property
    def steady_from(self) -> int:
        """Return the step from which every bucket launches once a period and nothing is dense.

        It is 0, or the end of a warm-up or of a growth.
        """
        return 0

    @property
    def delay(self) -> int:
        """Return the steps from a launch to its landing (tau)."""
        return 0

    @property
    def fragments(self) -> int:
        """Return how many groups of buckets launch at different steps."""
        return 1

    @property
    def skips_steps(self) -> bool:
        """Return whether slower ranks rest at some steps."""
        return False

    @property
    def closes_rounds(self) -> bool:
        """Return whether a period is a round of local steps.

        Everything then launches and lands at the last step of each period, from the first on.
        """
        return False

    def works(self, step: int, steps: int) -> bool:
        """Return whether a rank that takes `steps` steps of each period takes this one; where no
        rank rests, all take each."""
        return True

    @property
    def depth(self) -> int:
        """Return the most flights of one bucket in the air at once."""
        return self.delay // self.gap + 1

    @abstractmethod
    def tick(self, step: int, buckets: int) -> Tick:
        """Return what to do at `step` (0, 1, …) with `buckets` buckets."""
