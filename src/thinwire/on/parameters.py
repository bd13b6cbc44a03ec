"""The parameters themselves, averaged: local SGD, and a few of them at a time, SPARTA.

Each rank takes its own optimiser steps; at a launch, w = sum of (w_k / sum w) · w_k. (Stich 2019, arXiv:1805.09767.)
With `randomk(p)` only the entries that its lot falls on are averaged, and all others stay each rank's own: at every step another share p.
(SPARTA, Beton et al. 2025, "Improving the Efficiency of Distributed Training using Sparse Parameter Averaging", openreview stFPf3gzq1.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from thinwire.core import Bucket, Codec, Schedule, State, Target


@dataclass(frozen=True)
class parameters(Target):
    """The mean of all parameters, exact, or with `randomk(p)` of the entries that it draws; a step is an optimiser step.

    Raises:
        StrategyError: (when the strategy is built) a lossy codec other than a bare `randomk(p)`, which would put its errors into the
            weights, or a delay, which would throw away the steps taken meanwhile.

    Example:
        >>> from thinwire.what import topk
        >>> from thinwire.when import every
        >>> print(parameters().refuses(every(16), topk(0.1))[:61])
        Cannot use topk(k=0.1, per=0) on parameters(): its errors wou
    """

    clock: ClassVar[Literal["backward", "step"]] = "step"

    @property
    def masked(self) -> bool:
        return True

    def refuses(self, when: Schedule, what: Codec) -> str | None:
        if what.lossy and not what.partial:
            return (
                f"Cannot use {what!r} on parameters(): its errors would be written into the weights (a sparse mean would erase them). "
                "Use deltas(outer=sgd(1.0)), whose differences may be compressed, or identity(), or randomk(p) to average a share p"
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
        mask = bucket.spoken()
        bucket.set_weights(total if mask is None else torch.where(mask, total, bucket.weights()))

    def common(self, bucket: Bucket, state: State) -> None:
        """Between landings each rank has its own; of a few entries at a time, always."""
