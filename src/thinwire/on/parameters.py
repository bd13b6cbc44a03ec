"""Average the parameters themselves (local SGD), or a few of them at a time (SPARTA).

Each rank takes its own optimiser steps; at a launch, w = sum of (s_k / sum s) · w_k, with s_k the
ranks' weights. (Stich 2019,
arXiv:1805.09767.) With `randomk(p)` only the entries that it draws are averaged, and all others
stay each rank's own: at every step another fraction p. (SPARTA, Beton et al. 2025, "Improving the
Efficiency of Distributed Training using Sparse Parameter Averaging", openreview stFPf3gzq1.) With
an outer optimiser each rank has an anchor a_k and outer state of its own. At a landing, with c =
`pull` and M the mean that it receives,
    d = c a_k - M(w + (c - 1) a) = M(a - w) + c (a_k - M(a)),    a_k = outer(a_k, d),    w_k = a_k
so it follows the pseudo-gradients that it receives, and its anchor is drawn towards the others'.
Where M is the mean of all, anchors are equal, and that is DiLoCo; over `gossip()` it is NoLoCo's
step, in one message. (NoLoCo, Kolehmainen et al. 2025, arXiv:2506.10911.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from thinwire.core import Bucket, Codec, Outer, Schedule, State, Target
from thinwire.core.component import spelled_out
from thinwire.errors import StrategyError
from thinwire.on._anchor import anchored, misfits, put


@dataclass(frozen=True, repr=False)
class parameters(Target):
    """A target that averages all parameters, or with `randomk(p)` the entries that it draws; a step
    is an optimiser step.

    Args:
        outer: `None` puts the mean in the parameters' place. `sgd(lr, momentum)`, `nesterov(lr)`, …
            moves this rank's own anchor towards it: an anchor and the outer state of memory.
        pull: c above, positive: how strongly anchors that differ are drawn together beside the
            pseudo-gradient. NoLoCo's gamma is c · lr; only with `outer`.
        store: "bf16" keeps the anchor and the outer state of float32 parameters in half the memory.
            Anchors are rounded at random (unbiased), outer state to the nearest. Only with `outer`,
            and not `optim`, whose averages that would halt.
        device: "cpu" keeps anchor and outer state in the memory of the host, and runs the outer
            optimiser there. Only with `outer`.

    Raises:
        StrategyError: a pull that is not positive and finite, another word, `optim` in bf16, or a
            pull, store or device without `outer`. With a strategy: a lossy codec other than a bare
            `randomk(p)`, which would put its errors into the weights; `randomk(p)` with `outer`; or
            a delay, which would throw away the steps taken meanwhile.

    Example:
        >>> from thinwire.what import topk
        >>> from thinwire.when import every
        >>> print(parameters().refuses(every(16), topk(0.1))[:61])
        Cannot use topk(k=0.1, per=0) on parameters(): its errors wou
        >>> from thinwire.on import sgd
        >>> parameters(outer=sgd(0.7, 0.5), store="bf16")
        parameters(outer=sgd(lr=0.7, momentum=0.5), store='bf16')
    """

    outer: Outer | None = None
    pull: float = 1.0
    store: Literal["bf16"] | None = None
    device: Literal["cpu"] | None = None
    clock: ClassVar[Literal["backward", "step"]] = "step"

    def __post_init__(self) -> None:
        reasons = []
        if not 0 < self.pull < math.inf:
            reasons.append(
                f"parameters(pull={self.pull}): what draws anchors together is positive, and finite"
            )
        if self.outer is None and self.pull != 1.0:
            reasons.append(
                f"parameters(pull={self.pull}): there are no anchors to draw together; give "
                "outer=, such as sgd(0.7, 0.5)"
            )
        reasons += misfits("parameters", self.outer, self.store, self.device)
        for setting, word in (("store", self.store), ("device", self.device)):
            if self.outer is None and word is not None:
                reasons.append(
                    f"parameters({setting}={word!r}): there is no anchor to keep; give outer=, "
                    "such as sgd(0.7, 0.5)"
                )
        if reasons:
            raise StrategyError(reasons)

    def __repr__(self) -> str:
        return spelled_out(self, 0)

    @property
    def contracts(self) -> bool:
        return True

    @property
    def accepts_mask(self) -> bool:
        return True

    def refuses(self, when: Schedule, what: Codec) -> str | None:
        if what.traits.lossy and not what.traits.partial:
            return (
                f"Cannot use {what!r} on parameters(): its errors would be written into the "
                "weights (a sparse mean would erase them). "
                "Use deltas(outer=sgd(1.0)), whose differences may be compressed, or identity(), "
                "or randomk(p) to average a fraction p"
            )
        if what.traits.lossy and self.outer is not None:
            return (
                f"Cannot use {what!r} on {self!r}: an outer step needs the mean of every "
                "parameter. Use identity(), or parameters() "
                "without an outer optimiser"
            )
        if when.delay:
            return (
                f"Cannot use {when!r} on parameters(): a mean that lands late would undo the "
                "steps taken meanwhile. "
                "Use deltas(…, alpha=0.5)"
            )
        return None

    def init(self, bucket: Bucket) -> State:
        if self.outer is None:
            return State()
        state = anchored(bucket, bucket.weights(), self.outer, self.store, self.device)
        # Ranks may receive different means (gossip), so each anchor is its rank's own.
        for _, leaf in state.walk():
            leaf.kind = "private"
        return state

    def read(self, bucket: Bucket, state: State, weight: float) -> Tensor:
        values = bucket.weights()
        if self.outer is not None and self.pull != 1.0:
            values.add_(state["anchor"].flat.to(values.device), alpha=self.pull - 1)
        return values.mul_(weight)

    def write(self, bucket: Bucket, total: Tensor, state: State) -> None:
        # a. An anchor: d = c a - M, then the outer step.
        if self.outer is not None:
            leaf = state["anchor"]
            before = leaf.flat
            delta = before * self.pull - total.to(before.device, before.dtype)
            put(
                leaf,
                self.outer.bind(bucket).update(before, delta, state.child("outer"), bucket.spec),
                drawn_from=delta,
            )
            bucket.set_weights(leaf.flat.to(total.device))
            return
        # b. The mean itself; entries that were not drawn stay this rank's own.
        mask = bucket.mask()
        bucket.set_weights(total if mask is None else torch.where(mask, total, bucket.weights()))

    def common(self, bucket: Bucket, state: State) -> None:
        """Return `None`: ranks have their own between landings, or always, of a few entries."""
