"""Send parameter deltas: many local steps as one pseudo-gradient to an outer optimiser.

Every rank holds the same anchor A. Steps:
    1. each rank takes its own optimiser steps from A to w_k
    2. at a launch, delta = sum of (s_k / sum s) · (A - w_k) travels, with s_k the ranks' weights
    3. at the landing, A = outer(A, delta), and w_k = alpha · w_k + (1 - alpha) · A
Eager: at the launch a rank goes on from outer(A, its own delta); at the landing it moves by the
difference that the mean makes. Bytes fall by the period. The anchor is what ranks agree on, so
validate and save it (`with sync.common_weights():`). (DiLoCo, Douillard et al. 2023,
arXiv:2311.08105; delayed and merged with alpha, Streaming DiLoCo, arXiv:2501.18512; eager updates,
Kale, Douillard & Donchev 2025, arXiv:2502.12996.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from thinwire.core import Bucket, Codec, Leaf, Outer, Schedule, State, Target
from thinwire.core.component import spelled_out
from thinwire.errors import StrategyError
from thinwire.on._anchor import anchored, misfits, put, twin
from thinwire.on.outer import nesterov


@dataclass(frozen=True, repr=False)
class deltas(Target):
    """A target that sends mean pseudo-gradients to an outer optimiser; a step is an optimiser step.

    It takes one anchor and the outer state of memory, in float32.

    Args:
        outer: `nesterov(lr, momentum)`, `sgd(lr, momentum)`, or `optim(name, settings)` for any
            optimiser of torch.
        alpha: the fraction of its own parameters that a rank keeps at a landing, in [0, 1]; 0
            starts every round at the anchor, 1 never looks at it.
        eager: apply the own delta at the launch, as if it were the mean, and put that right at the
            landing. Steps taken meanwhile count in full, so alpha must be 0.
        store: "bf16" keeps the anchor and the outer state of float32 parameters in half the memory.
            Anchors are rounded at random (unbiased, alike on all ranks), outer state to the
            nearest. Not with `optim`, whose averages would stand still.
        device: "cpu" keeps anchor and outer state in the memory of the host, and runs the outer
            optimiser there.

    Raises:
        StrategyError: alpha outside [0, 1], eager with an alpha, another word, `optim` in bf16.
            With a strategy: a delay as long as the steps from one launch to the next, or longer.

    Example:
        >>> deltas(outer=nesterov(0.7, 0.9))
        deltas(outer=nesterov(lr=0.7, momentum=0.9), alpha=0.0)
        >>> deltas(outer=nesterov(0.7, 0.9), store="bf16")
        deltas(outer=nesterov(lr=0.7, momentum=0.9), alpha=0.0, store='bf16')
    """

    outer: Outer = field(default_factory=nesterov)
    alpha: float = 0.0
    eager: bool = False
    store: Literal["bf16"] | None = None
    device: Literal["cpu"] | None = None
    clock: ClassVar[Literal["backward", "step"]] = "step"

    def __post_init__(self) -> None:
        reasons = []
        if not 0 <= self.alpha <= 1:
            reasons.append(
                f"deltas(alpha={self.alpha}): the fraction of its own parameters that a rank keeps "
                "lies in [0, 1]"
            )
        if self.eager and self.alpha:
            reasons.append(
                f"deltas(alpha={self.alpha}, eager=True): steps taken since the launch are kept "
                "in full; take alpha=0"
            )
        reasons += misfits("deltas", self.outer, self.store, self.device)
        if reasons:
            raise StrategyError(reasons)

    def __repr__(self) -> str:
        return spelled_out(self, 2)

    def refuses(self, when: Schedule, what: Codec) -> str | None:
        if when.delay and when.delay >= when.gap:
            return (
                f"Cannot use {when!r} on deltas(…): a delta must land before the next one is "
                "taken, or local progress counts twice. "
                f"Take a delay below {when.gap}, the fewest steps from one launch to the next"
            )
        return None

    @property
    def moves_anchor(self) -> bool:
        return not self.alpha and not self.eager

    def init(self, bucket: Bucket) -> State:
        anchor = bucket.weights()
        state = anchored(bucket, anchor, self.outer, self.store, self.device)
        # how far the launch has moved this rank on its own: nothing (one zero) while no flight is
        # in the air
        if self.eager:
            state.leaves["ahead"] = Leaf(
                torch.zeros((), dtype=anchor.dtype, device=anchor.device),
                "private",
                part=bucket.spec.key,
            )
        return state

    def read(self, bucket: Bucket, state: State, weight: float) -> Tensor:
        # 1. delta = anchor - own parameters
        own, anchor = bucket.weights(), state["anchor"].flat
        delta = torch.sub(anchor.to(own.device), own, out=own)
        # 2. eager: go on from where the own delta alone would take the anchor, and note how far
        if self.eager:
            # A twin of the outer state: the real one is updated by the mean alone, at the landing.
            moved = self.outer.bind(bucket).update(
                anchor, delta.to(anchor.device), twin(state.child("outer")), bucket.spec
            )
            bucket.set_weights(moved)
            moved = moved.to(own.device)
            state["ahead"].value = torch.sub(moved, anchor.to(own.device), out=moved)
        return delta.mul_(weight)

    def write(self, bucket: Bucket, total: Tensor, state: State) -> None:
        # 1. move the anchor
        leaf = state["anchor"]
        before = leaf.flat
        delta = total.to(before.device, before.dtype)
        put(
            leaf,
            self.outer.bind(bucket).update(before, delta, state.child("outer"), bucket.spec),
            drawn_from=delta,
        )
        # 2. move this rank's parameters: by what its launch has not moved it yet, or to the anchor
        anchor = leaf.flat.to(total.device)
        if self.eager:
            ahead = state["ahead"]
            # Steps taken since the launch stay: only the difference that the mean makes is added.
            correction = torch.sub(anchor, before.to(total.device)).sub_(
                ahead.value.to(total.device)
            )
            bucket.set_weights(bucket.weights().add_(correction))
            ahead.value = torch.zeros((), dtype=anchor.dtype, device=anchor.device)
        else:
            bucket.set_weights(
                torch.lerp(anchor, bucket.weights(), self.alpha) if self.alpha else anchor
            )

    @property
    def offers_base(self) -> bool:
        return True

    def base(self, bucket: Bucket, state: State) -> Tensor:
        """Return the anchor."""
        return state["anchor"].flat

    def common(self, bucket: Bucket, state: State) -> Tensor:
        return state["anchor"].flat
