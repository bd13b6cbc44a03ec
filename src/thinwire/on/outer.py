"""Outer optimisers: what a mean pseudo-gradient does to the anchor.

With delta the mean of (anchor - w_k): `sgd(1.0)` puts the anchor on the mean of the ranks' parameters; `nesterov(0.7, 0.9)` is DiLoCo's
(Douillard et al. 2023, arXiv:2311.08105). Same recurrences as `torch.optim.SGD`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from thinwire.core import Leaf, Outer, Spec, State
from thinwire.errors import StrategyError


@dataclass(frozen=True)
class sgd(Outer):
    """anchor - lr · delta; with momentum, v = momentum · v + delta and anchor - lr · v.

    Args:
        lr: outer rate, above 0. 1.0 without momentum is plain averaging.
        momentum: in [0, 1).

    Raises:
        StrategyError: an argument outside the above.

    Example:
        >>> spec = Spec((), 0, 1, torch.float32)
        >>> sgd(0.5).update(torch.tensor([1.0]), torch.tensor([2.0]), sgd(0.5).init(spec, torch.tensor([1.0])))
        tensor([0.])
    """

    lr: float = 1.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        _check(self, self.lr, self.momentum)

    def init(self, spec: Spec, anchor: Tensor) -> State:
        return _velocity(spec, anchor) if self.momentum else State()

    def update(self, anchor: Tensor, delta: Tensor, state: State) -> Tensor:
        if not self.momentum:
            return torch.sub(anchor, delta, alpha=self.lr)
        velocity = state["velocity"]
        velocity.value = velocity.value * self.momentum + delta
        return torch.sub(anchor, velocity.value, alpha=self.lr)


@dataclass(frozen=True)
class nesterov(Outer):
    """v = momentum · v + delta; anchor - lr · (delta + momentum · v).

    Args:
        lr: outer rate, above 0. Best at 0.4, 0.6, 0.6, 0.8 for 1, 2, 4, 8 replicas at momentum 0.9 (arXiv:2503.09799).
        momentum: in (0, 1).

    Raises:
        StrategyError: an argument outside the above.

    Example:
        >>> nesterov(0.7, 0.9)
        nesterov(lr=0.7, momentum=0.9)
    """

    lr: float = 0.7
    momentum: float = 0.9

    def __post_init__(self) -> None:
        _check(self, self.lr, self.momentum)
        if not self.momentum:
            raise StrategyError(f"{self!r}: Nesterov's look-ahead needs a momentum; use sgd({self.lr})")

    def init(self, spec: Spec, anchor: Tensor) -> State:
        return _velocity(spec, anchor)

    def update(self, anchor: Tensor, delta: Tensor, state: State) -> Tensor:
        velocity = state["velocity"]
        velocity.value = velocity.value * self.momentum + delta
        return anchor - self.lr * (delta + self.momentum * velocity.value)


def _check(outer: Outer, lr: float, momentum: float) -> None:
    reasons = []
    if not 0 < lr < float("inf"):
        reasons.append(f"{outer!r}: an outer rate is positive and finite")
    if not 0 <= momentum < 1:
        reasons.append(f"{outer!r}: a momentum lies in [0, 1)")
    if reasons:
        raise StrategyError(reasons)


def _velocity(spec: Spec, anchor: Tensor) -> State:
    return State({"velocity": Leaf(torch.zeros_like(anchor), "replicated", spec)})
