"""What becomes of a launch with values that are not finite: the step is refused, left out, or taken, on all ranks alike.

On gradients such a launch lands as NaN on every rank, so that whatever looks at `.grad` sees it. It is judged where the optimiser steps:
a step that a `GradScaler` skips, or gradients that the loop has mended, are no trouble.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from thinwire.engine.buckets import Airborne, FlatBucket
from thinwire.engine.meter import Meter
from thinwire.engine.status import Status
from thinwire.errors import NonFiniteError
from thinwire.kernels import fast

Policy = Literal["raise", "skip", "pass"]
POLICIES: tuple[Policy, ...] = ("raise", "skip", "pass")


class Guard:
    """The policy of one syncer, and the launch that is waiting to be judged.

    Args:
        policy: as given to `attach`.
        on_gradients: what lands is applied by the user's optimiser, not by the landing itself.
    """

    def __init__(self, policy: Policy, on_gradients: bool, meter: Meter) -> None:
        self.policy, self._on_gradients, self._meter = policy, on_gradients, meter
        self._message = ""
        self._stepping = False  # within optimizer.step(): a closure runs its own backward pass
        self._warned = False

    @property
    def active(self) -> bool:
        """Whether values are looked at."""
        return self.policy != "pass"

    def failed(self, landing: Sequence[tuple[FlatBucket, Airborne]], status: Status | None) -> None:
        """Take note of a launch with values that are not finite, before its totals are written; every rank calls it.

        Raises:
            NonFiniteError: the landing itself would apply them: on local steps, or within a closure of the optimiser.
        """
        step = landing[0][1].step
        which = "gradients" if self._on_gradients else "parameters"
        if status is not None and status.bad:
            where = ", ".join(status.offenders())
        else:
            here = [bucket.name_at(int(air.first_bad)) for bucket, air in landing if int(air.first_bad) >= 0]
            where = f"this rank: {here[0]!r}" if here else f"not this rank's own, but the mean of bucket {landing[0][0].index}"
        self._message = f"step {step}: {which} that are not finite ({where}). "
        if not self._on_gradients:
            raise NonFiniteError(
                f"{self._message}Nothing was written at this landing. Go on from the last checkpoint, with a lower rate or clipping, and "
                "look at that rank's batches"
            )
        for _, air in landing:
            if bool(fast.all_finite(air.x)):  # a codec that sends some values only may have sent none of the bad ones
                air.x.fill_(torch.nan)
        if self._stepping:
            message, self._message = self._message, ""
            raise NonFiniteError(f"{message}They came from the closure of optimizer.step(), which would apply them")

    def before_step(self, optimizer: Optimizer, *_: Any) -> None:
        """Judge the last landing where the optimiser is about to apply it.

        Raises:
            NonFiniteError: with the policy "raise", it would apply values that are not finite.
        """
        self._stepping = True
        message, self._message = self._message, ""
        if not message:
            return
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):  # a fused optimiser leaves the step out by itself
            return
        params = [param for group in optimizer.param_groups for param in group["params"] if param.grad is not None]
        if all(bool(fast.all_finite(param.grad)) for param in params):
            return
        if self.policy == "raise":
            self._stepping = False
            raise NonFiniteError(
                f"{message}optimizer.step() would have put them into every rank's weights; it did not. Clip, lower the rate, or look at "
                "that rank's batch; attach(nonfinite='skip') leaves such steps out, nonfinite='pass' takes them"
            )
        self._meter.skipped += 1
        for param in params:
            param.grad = None
        if not self._warned:
            self._warned = True
            warnings.warn(f"{message}The step was left out on all ranks; sync.report() counts such steps", stacklevel=4)

    def after_step(self, *_: Any) -> None:
        """Note that the optimiser has stepped."""
        self._stepping = False
