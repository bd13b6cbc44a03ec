"""Agree on the pace of each rank under `by_speed`: its steps of a period, and its weight.

Every rank stores the counts of all, and changes them at the same step of the common clock, so ranks
cannot disagree on a weight.
"""

from __future__ import annotations

import statistics
import struct
import time
from collections.abc import Sequence
from typing import Any

import torch

from thinwire.core import Driver, Schedule
from thinwire.engine.agree import Gathering
from thinwire.engine.observe.meter import Meter
from thinwire.errors import AttachError, NotLandedError

now = time.perf_counter


class Pace:
    """A record of how fast ranks go, as all of them agree."""

    def __init__(
        self, when: Schedule, driver: Driver, meter: Meter, buckets: int, device: torch.device
    ) -> None:
        self._when, self._driver, self._meter, self._device = when, driver, meter, device
        self.steps = [when.period] * driver.world
        """Steps that each rank takes of a period."""
        self.taken = [[0] * buckets for _ in range(driver.world)]
        """Steps that each rank has taken since the last launch of each bucket."""
        self._seconds: list[float] = []  # of this rank's steps since it last sent them
        self._left: float | None = None  # when the loop went on after the last step
        self._message: Gathering | None = None
        self._received: list[float] | None = None

    def works(self, step: int) -> bool:
        """Return whether this rank takes the step."""
        return self._when.works(step, self.steps[self._driver.rank])

    def count(self, step: int, rested: bool) -> None:
        """Count a step of the clock that this rank has taken, or rested at.

        Raises:
            NotLandedError: it was to be rested at, or was rested at where it was to be taken.
        """
        # 1. Refuse a rank that does not go by its pace: all others weigh it by that pace.
        if rested and self.works(step):
            raise NotLandedError(
                f"step {step} was skipped by a rank that takes it: `by_speed` weighs ranks by the "
                "steps that they are to take, so each "
                "takes them. Skip where `sync.rests()` only; a rank without data leaves, or the "
                "group trains without by_speed"
            )
        if not rested:
            if not self.works(step):
                pace = f"{self.steps[self._driver.rank]} of {self._when.period}"
                raise NotLandedError(
                    f"step {step} was taken by a rank that rests at it: at its speed it takes "
                    f"{pace} steps. Begin the loop with "
                    "`if sync.rests(): sync.skip_step(); continue`"
                )
            if self._left is not None:
                self._seconds.append(now() - self._left)
        # 2. Count for every rank, which each can reckon by itself: no message is needed.
        for steps, taken in zip(self.steps, self.taken, strict=True):
            if self._when.works(step, steps):
                taken[:] = [count + 1 for count in taken]

    def weight(self, bucket: int, fractions: Sequence[float]) -> float:
        """Return this rank's weight in the mean of a bucket that launches.

        It goes by the rank's steps since the last launch, times its weight a step.
        """
        weights = [
            fraction * taken[bucket] for fraction, taken in zip(fractions, self.taken, strict=True)
        ]
        for taken in self.taken:
            taken[bucket] = 0
        if not sum(weights):
            raise AttachError(
                "no rank of weight above 0 has taken a step since the last launch of bucket "
                f"{bucket}; by rank: {weights}"
            )
        return weights[self._driver.rank] / sum(weights)

    def send(self) -> None:
        """Send this rank's seconds a step (0 where it has none) to the others, as a flight of its
        own."""
        payload = struct.pack("<d", statistics.median(self._seconds) if self._seconds else 0.0)
        self._seconds.clear()
        self._message = Gathering(
            self._driver, self._meter, payload, "speeds of ranks", self._device
        )

    def receive(self) -> None:
        """Wait for the others' seconds, if they are on their way."""
        if self._message is not None:
            self._received = [struct.unpack("<d", packed)[0] for packed in self._message.result()]
            self._message = None

    def take_up(self) -> None:
        """Let the speeds that ranks sent hold from the next step on; a rank that sent none keeps
        its pace."""
        self.receive()
        if self._received is None:
            return
        # The fastest rank takes every step of a period, the others in proportion, and at least one.
        fastest = min((seconds for seconds in self._received if seconds), default=0.0)
        for rank, seconds in enumerate(self._received):
            if seconds:
                self.steps[rank] = max(1, round(self._when.period * fastest / seconds))
        self._received = None

    def leave(self) -> None:
        """Note that the loop goes on: its next step begins."""
        self._left = now()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint saves; speeds that are on their way are waited for first."""
        self.receive()
        return {
            "period": self._when.period,
            "steps": self.steps,
            "taken": self.taken,
            "heard": self._received,
        }

    def resume(self, state: dict[str, Any] | None) -> None:
        """Go on at the pace of a checkpoint; of another world or layout, begin again at an even
        one."""
        self._seconds.clear()
        self._left = self._message = None
        # Counts of another period, or of other buckets, have no meaning here.
        if (
            state is not None
            and state["period"] == self._when.period
            and len(state["taken"][0]) == len(self.taken[0])
        ):
            self.steps, self.taken, self._received = (
                list(state["steps"]),
                [list(taken) for taken in state["taken"]],
                state["heard"],
            )
        else:
            self.steps, self._received = [self._when.period] * self._driver.world, None
            self.taken = [[0] * len(taken) for taken in self.taken]
