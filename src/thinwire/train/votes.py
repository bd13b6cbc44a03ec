"""Stop all ranks after the same step, though a signal reaches one rank at some step.

About once a second every rank sends a vote on the control lane: whether it has had a signal to
stop. Ranks read the votes when they send the next ones, so nobody waits for the network. All ranks
read the same votes after the same step, so they cannot disagree. The number of steps until the next
vote is part of the vote: the smallest proposal wins.
"""

from __future__ import annotations

import struct

import torch

from thinwire.engine.agree import Gathering
from thinwire.train.everyone import Everyone

SECONDS = 1.0
MOST = 1000
_VOTE = struct.Struct("<?I")


class Votes:
    """The votes of one rank. Every rank calls `after` once for each optimiser step."""

    def __init__(self, everyone: Everyone, device: torch.device) -> None:
        self._everyone, self._device = everyone, device
        self._next_vote = 1
        self._count = 0
        self._seconds = 0.0
        self._pending: Gathering | None = None

    def after(self, stop: bool, seconds: float) -> bool:
        """Return whether all ranks stop now.

        Args:
            stop: whether this rank has had a signal to stop.
            seconds: how long the step took here.
        """
        if self._everyone.driver.world == 1:
            return stop
        # 1. Between votes, only count steps.
        self._count += 1
        self._seconds += seconds
        if self._count < self._next_vote:
            return False
        # 2. Read them. All ranks read the same votes, so all stop, or all go on to the same step.
        stopping = False
        if self._pending is not None:
            received = [_VOTE.unpack(vote) for vote in self._pending.result()]
            stopping = any(wants_stop for wants_stop, _ in received)
            self._next_vote = min(wanted for _, wanted in received)
        # 3. Vote again, with the number of steps that take SECONDS here; the least of all ranks
        # applies.
        steps = max(1, min(MOST, round(SECONDS * self._count / max(self._seconds, 1e-6))))
        self._count, self._seconds, self._pending = 0, 0.0, None
        if not stopping:
            vote = _VOTE.pack(stop, steps)
            self._pending = Gathering(
                self._everyone.driver,
                self._everyone.meter,
                vote,
                f"step {self._everyone.step}: a vote on stopping",
                self._device,
            )
        return stopping

    def close(self) -> None:
        """Wait for the last vote, at the end."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None
