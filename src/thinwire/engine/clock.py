"""Where a syncer stands in its schedule."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Clock:
    """A counter of the schedule's steps, and of what is under way in the present one.

    Example:
        >>> clock = Clock()
        >>> clock.advance(synced=False), clock.advance(synced=False)
        (None, None)
        >>> clock.step, clock.steps_since_sync
        (2, 2)
    """

    step: int = 0
    """Steps so far: backward passes, or optimiser steps."""
    began_at: int = 0
    """The step at which this syncer began: 0, or that of a checkpoint."""
    steps_since_sync: int = 0
    """Steps since all buckets last landed at once: under `staggered` in several parts, all there
    have been."""
    within: bool = False
    """A backward pass is under way."""
    accumulating: bool = False
    """`.grad` holds this rank's own sum: no mean landed in the last step."""
    worked: bool = False
    """On local steps: a backward pass has come since the last step that was counted."""

    def advance(self, *, synced: bool) -> None:
        """End a step; `synced`: all buckets landed in it."""
        self.step += 1
        self.steps_since_sync = 0 if synced else self.steps_since_sync + 1
        self.within = False

    def restart(self, step: int, steps_since_sync: int) -> None:
        """Go on from a checkpoint."""
        self.step = self.began_at = step
        self.steps_since_sync = steps_since_sync
        self.accumulating = False
