"""Parameter deltas: what many local steps have done, sent as one pseudo-gradient to an outer optimiser.

Every rank holds the same anchor A. Steps:
    1. each rank takes its own optimiser steps from A to w_k
    2. at a launch, delta = sum of (weight share) · (A - w_k) travels
    3. at the landing, A = outer(A, delta), and w_k = alpha · w_k + (1 - alpha) · A
Bytes fall by the period. The anchor is what ranks agree on, so validate and save it (`with sync.common_weights():`).
(DiLoCo, Douillard et al. 2023, arXiv:2311.08105; delayed and merged with alpha, Streaming DiLoCo, arXiv:2501.18512.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from thinwire.core import Bucket, Codec, Leaf, Outer, Schedule, State, Target
from thinwire.errors import StrategyError
from thinwire.on.outer import nesterov


@dataclass(frozen=True)
class deltas(Target):
    """Mean pseudo-gradients into an outer optimiser; a step is an optimiser step. One anchor (and the outer state) of memory, float32.

    Args:
        outer: `nesterov(lr, momentum)` or `sgd(lr, momentum)`.
        alpha: how much of its own parameters a rank keeps at a landing, in [0, 1); 0 starts every round at the anchor.

    Raises:
        StrategyError: alpha outside [0, 1). With a strategy: a delay as long as the steps from one launch to the next, or longer.

    Example:
        >>> deltas(outer=nesterov(0.7, 0.9))
        deltas(outer=nesterov(lr=0.7, momentum=0.9), alpha=0.0)
    """

    outer: Outer = field(default_factory=nesterov)
    alpha: float = 0.0
    clock: ClassVar[Literal["backward", "step"]] = "step"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < 1:
            raise StrategyError(f"deltas(alpha={self.alpha}): the share of its own parameters that a rank keeps lies in [0, 1)")

    def refuses(self, when: Schedule, what: Codec) -> str | None:
        if when.delay and when.delay >= when.gap:
            return (
                f"Cannot use {when!r} on deltas(…): a delta must land before the next one is taken, or local progress counts twice. "
                f"Take a delay below {when.gap}, the fewest steps from one launch to the next"
            )
        return None

    def init(self, bucket: Bucket) -> State:
        anchor = bucket.weights()
        leaf = Leaf(anchor, "replicated", bucket.spec)
        return State({"anchor": leaf}, {"outer": self.outer.init(bucket.spec, anchor)})

    def read(self, bucket: Bucket, state: State, share: float) -> Tensor:
        return (state["anchor"].value - bucket.weights()).mul_(share)

    def write(self, bucket: Bucket, total: Tensor, state: State) -> None:
        leaf = state["anchor"]
        leaf.value = self.outer.update(leaf.value, total.to(leaf.value.dtype), state.child("outer"))
        bucket.set_weights(torch.lerp(leaf.value, bucket.weights(), self.alpha) if self.alpha else leaf.value)

    def common(self, bucket: Bucket, state: State) -> Tensor:
        return state["anchor"].value
