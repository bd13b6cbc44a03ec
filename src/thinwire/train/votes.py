"""Stopping together: a signal reaches one rank at some step, and all must save after the same one.

About once a second every rank tells the others, on the control lane, whether it was asked to stop.
What it heard is read when the next vote is due, so the wire has that time and nobody waits; all
ranks read the same votes after the same step, so they cannot disagree. How many steps lie between
two votes is voted for, too: the fewest that any rank proposes.
"""

from __future__ import annotations

import struct

import torch

from thinwire.engine import Syncer
from thinwire.engine.agree import Gathering

SECONDS = 1.0
MOST = 1000
_VOTE = struct.Struct("<?I")


class Votes:
    """The votes of one rank. Every rank calls `after` once an optimiser step."""

    def __init__(self, sync: Syncer, device: torch.device) -> None:
        self._sync, self._device = sync, device
        self._due = 1
        self._count = 0
        self._seconds = 0.0
        self._pending: Gathering | None = None

    def after(self, stop: bool, seconds: float) -> bool:
        """Whether all ranks stop now.

        Args:
            stop: whether this rank has been asked to.
            seconds: how long the step took here.
        """
        if self._sync.driver.world == 1:
            return stop
        self._count += 1
        self._seconds += seconds
        if self._count < self._due:
            return False
        stopping = False
        if self._pending is not None:
            heard = [_VOTE.unpack(vote) for vote in self._pending.result()]
            stopping = any(asked for asked, _ in heard)
            self._due = min(wanted for _, wanted in heard)
        steps = max(1, min(MOST, round(SECONDS * self._count / max(self._seconds, 1e-6))))
        self._count, self._seconds, self._pending = 0, 0.0, None
        if not stopping:
            vote = _VOTE.pack(stop, steps)
            self._pending = Gathering(
                self._sync.driver,
                self._sync.meter,
                vote,
                f"step {self._sync.step}: a vote on stopping",
                self._device,
            )
        return stopping

    def settle(self) -> None:
        """Wait for the vote on its way, at the end."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None
