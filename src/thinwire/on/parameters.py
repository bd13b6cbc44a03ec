"""The parameters themselves, averaged: local SGD.

Each rank takes its own optimiser steps; at a launch, w = sum of (w_k / sum w) · w_k. (Stich 2019, arXiv:1805.09767.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from thinwire.core import Bucket, Codec, Schedule, State, Target


@dataclass(frozen=True)
class parameters(Target):
    """The mean of all parameters, exact; a step is an optimiser step.

    Raises:
        StrategyError: (when the strategy is built) a lossy codec, which would put its errors into the weights, or a delay, which would
            throw away the steps taken meanwhile.

    Example:
        >>> from thinwire.what import topk
        >>> from thinwire.when import every
        >>> print(parameters().refuses(every(16), topk(0.1))[:61])
        Cannot use topk(k=0.1, per=0) on parameters(): its errors wou
    """

    clock: ClassVar[Literal["backward", "step"]] = "step"

    def refuses(self, when: Schedule, what: Codec) -> str | None:
        if what.lossy:
            return (
                f"Cannot use {what!r} on parameters(): its errors would be written into the weights (a sparse mean would erase them). "
                "Use deltas(outer=sgd(1.0)), whose differences may be compressed, or identity()"
            )
        if when.delay:
            return (
                f"Cannot use {when!r} on parameters(): a mean that lands late would undo the steps taken meanwhile. "
                "Use deltas(…, alpha=0.5)"
            )
        return None

    def read(self, bucket: Bucket, state: State, share: float) -> Tensor:
        return bucket.weights().mul_(share)

    def write(self, bucket: Bucket, total: Tensor, state: State) -> None:
        bucket.set_weights(total)

    def common(self, bucket: Bucket, state: State) -> None:
        """Between landings each rank has its own."""
