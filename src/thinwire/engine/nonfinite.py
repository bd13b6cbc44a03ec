"""Refuse, leave out or take a step whose values are not finite, on all ranks alike.

On gradients such a launch lands as NaN on every rank, so that whatever looks at `.grad` sees it. It
is judged where the optimiser steps: a step that a `GradScaler` skips, or gradients that the loop
has mended, are no trouble.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch.optim import Optimizer

from thinwire.engine.airborne import Airborne, LaunchStatus
from thinwire.engine.buckets import FlatBucket
from thinwire.engine.frames import called_within
from thinwire.engine.observe.meter import Meter
from thinwire.engine.replica import Replica
from thinwire.engine.shards import local_of
from thinwire.errors import NonFiniteError
from thinwire.kernels import fast

Policy = Literal["raise", "skip", "pass"]
POLICIES: tuple[Policy, ...] = ("raise", "skip", "pass")


class Guard:
    """A guard of one syncer: its policy, and the launch that is waiting to be judged.

    Args:
        policy: as given to `attach`.
        on_gradients: what lands is applied by the user's optimiser, not by the landing itself.
        replica: the ranks that judge alike, as they hold shards of one replica.
    """

    def __init__(self, policy: Policy, on_gradients: bool, meter: Meter, replica: Replica) -> None:
        self.policy, self._on_gradients, self._meter = policy, on_gradients, meter
        self._replica = replica
        self._message = ""
        self._step = -1  # of the launch that is waiting
        self._judged = False  # some optimiser has stepped since it landed
        self._skipped = -1  # the last launch that was left out
        self._warned = False

    @property
    def active(self) -> bool:
        """Return whether values are looked at."""
        return self.policy != "pass"

    def begin(self) -> None:
        """Forget a launch that has been judged, as a backward pass begins.

        One that has not been may still be in `.grad`.
        """
        if self._judged:
            self._message, self._judged = "", False

    def failed(
        self, landing: Sequence[tuple[FlatBucket, Airborne]], status: LaunchStatus | None
    ) -> None:
        """Take note of a launch with values that are not finite, before its totals are written;
        every rank calls it.

        Raises:
            NonFiniteError: the landing itself would apply them: on local steps, or within a closure
                of the optimiser.
        """
        # 1. The message: the rank and parameter that all agree on, or what this rank sees itself.
        self._step = landing[0][1].step
        which = "gradients" if self._on_gradients else "parameters"
        if status is not None and status.bad:
            where = status.offender
        else:
            here = [
                bucket.name_at(int(air.first_bad))
                for bucket, air in landing
                if int(air.first_bad) >= 0
            ]
            where = (
                f"this rank: {here[0]!r}"
                if here
                else f"not this rank's own, but the mean of bucket {landing[0][0].index}"
                + ("" if self._replica.ranks == 1 else ", or another shard of this replica")
            )
        self._message, self._judged = (
            f"step {self._step}: {which} that are not finite ({where}). ",
            False,
        )
        # 2. On local steps the landing itself would apply them: raise before anything is written.
        if not self._on_gradients:
            raise NonFiniteError(
                f"{self._message}Nothing was written at this landing. Go on from the last "
                "checkpoint, with a lower rate or clipping, and "
                "look at that rank's batches"
            )
        # 3. On gradients write NaN, so that whatever looks at `.grad` sees that it failed. Where a
        #    launch lands in parts, which are stepped by themselves, write it into each of them.
        some = status is not None and len(landing) < status.whole
        for bucket, air in landing:
            hidden = status is None or some or bucket.index in status.bad
            # A codec that sends only some values may have sent none of the bad ones.
            if hidden and bool(fast.all_finite(air.x)):
                air.x.fill_(torch.nan)
        # 4. Within a closure the optimiser has begun its step: no pre-hook can stop it any more.
        if called_within("wrapper", "torch/optim/optimizer.py"):  # a closure is running
            message, self._message = self._message, ""
            raise NonFiniteError(
                f"{message}They came from the closure of optimizer.step(), which would apply them"
            )

    def before_step(self, optimizer: Optimizer) -> None:
        """Judge the last landing where an optimiser is about to apply it.

        Raises:
            NonFiniteError: with the policy "raise", it would apply values that are not finite.
        """
        if not self._message:
            return
        self._judged = True
        # 1. No trouble: a fused optimiser leaves the step out by itself, or the loop has mended
        #    `.grad`.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            return
        params = [
            param
            for group in optimizer.param_groups
            for param in group["params"]
            if param.grad is not None
        ]
        bad = not all(bool(fast.all_finite(local_of(param.grad))) for param in params)
        if not self._replica.any(bad, self._meter, f"step {self._step}: gradients not finite"):
            return
        # 2. "raise", before the optimiser writes; or "skip": without gradients the step does
        #    nothing.
        if self.policy == "raise":
            raise NonFiniteError(
                f"{self._message}optimizer.step() would have put them into every rank's weights; "
                "it did not. Clip, lower the rate, or "
                "look at that rank's batch; attach(nonfinite='skip') leaves such steps out, "
                "nonfinite='pass' takes them"
            )
        for param in params:
            param.grad = None
        # Several optimisers may step after one launch: count it once.
        self._meter.skipped += self._skipped != self._step
        self._skipped = self._step
        if not self._warned:
            self._warned = True
            warnings.warn(
                (
                    f"{self._message}The step was left out on all ranks; sync.report() counts "
                    "such steps"
                ),
                stacklevel=4,
            )
