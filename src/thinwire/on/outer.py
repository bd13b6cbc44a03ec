"""Move the anchor by a mean pseudo-gradient: outer optimisers.

With delta the mean of (anchor - w_k): `sgd(1.0)` puts the anchor on the mean of the ranks'
parameters; `nesterov(0.7, 0.9)` is DiLoCo's (Douillard et al. 2023, arXiv:2311.08105). Same
recurrences as `torch.optim.SGD`. `optim(name, settings)` is any other of torch's.
"""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thinwire.core import Bucket, Leaf, Outer, Part, Spec, State
from thinwire.errors import StrategyError
from thinwire.kernels import memory
from thinwire.text.words import expression

# By replicas, at momentum 0.9 and 30 local steps (Charles et al. 2025, arXiv:2503.09799).
RATES = {1: 0.4, 2: 0.6, 4: 0.6, 8: 0.8}
LONG = 30  # local steps from which those rates hold
MOMENTUM = 0.9


@dataclass(frozen=True)
class sgd(Outer):
    """Move by anchor - lr · delta; with momentum, v = momentum · v + delta and anchor - lr · v.

    Args:
        lr: outer rate, above 0. 1.0 without momentum is plain averaging.
        momentum: in [0, 1).

    Raises:
        StrategyError: an argument outside the above.

    Example:
        >>> spec = Spec((), 0, 1, torch.float32)
        >>> anchor, delta = torch.tensor([1.0]), torch.tensor([2.0])
        >>> sgd(0.5).update(anchor, delta, sgd(0.5).init(spec, anchor), spec)
        tensor([0.])
    """

    lr: float = 1.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        _check(self, self.lr, self.momentum)

    def init(self, spec: Spec, anchor: Tensor) -> State:
        return _velocity(spec, anchor) if self.momentum else State()

    def update(self, anchor: Tensor, delta: Tensor, state: State, spec: Spec) -> Tensor:
        if not self.momentum:
            return torch.sub(anchor, delta, alpha=self.lr, out=memory.empty_like(anchor))
        velocity = state["velocity"]
        moved = velocity.flat = torch.mul(
            velocity.flat, self.momentum, out=memory.empty_like(delta)
        ).add_(delta)
        return torch.sub(anchor, moved, alpha=self.lr, out=memory.empty_like(anchor))


@dataclass(frozen=True)
class nesterov(Outer):
    """Move by Nesterov's v = momentum · v + delta; anchor - lr · (delta + momentum · v).

    Args:
        lr: outer rate, above 0; `None` takes `outer_rate(world, period)` where it runs.
        momentum: in (0, 1).

    Raises:
        StrategyError: an argument outside the above, or no rate for a momentum other than 0.9, for
            which none are known.

    Example:
        >>> nesterov(0.7, 0.9)
        nesterov(lr=0.7, momentum=0.9)
    """

    lr: float | None = None
    momentum: float = MOMENTUM

    def __post_init__(self) -> None:
        _check(self, MOMENTUM if self.lr is None else self.lr, self.momentum)
        if not self.momentum:
            raise StrategyError(
                f"{self!r}: Nesterov's look-ahead needs a momentum; use "
                f"sgd({1.0 if self.lr is None else self.lr})"
            )
        if self.lr is None and self.momentum != MOMENTUM:
            raise StrategyError(
                f"{self!r}: good rates by replicas are known for a momentum of {MOMENTUM}; give "
                "the rate, too"
            )

    def bind(self, bucket: Bucket) -> nesterov:
        return (
            self
            if self.lr is not None
            else dataclasses.replace(self, lr=outer_rate(bucket.world, bucket.when.period))
        )

    def init(self, spec: Spec, anchor: Tensor) -> State:
        return _velocity(spec, anchor)

    def update(self, anchor: Tensor, delta: Tensor, state: State, spec: Spec) -> Tensor:
        assert self.lr is not None, "bound before"
        velocity = state["velocity"]
        moved = velocity.flat = torch.mul(
            velocity.flat, self.momentum, out=memory.empty_like(delta)
        ).add_(delta)
        step = torch.add(delta, moved, alpha=self.momentum, out=memory.empty_like(delta))
        return torch.sub(anchor, step, alpha=self.lr, out=step)


def outer_rate(world: int, period: int) -> float:
    """Return a good rate of Nesterov's momentum of 0.9 for so many replicas and local steps.

    From 30 local steps on it is what was found best: 0.4, 0.6, 0.6, 0.8 for 1, 2, 4, 8 replicas
    whatever the model's size, and 0.8 for more (Charles et al. 2025, arXiv:2503.09799); between, by
    the logarithm of the replicas. Towards one local step it falls to 0.1, at which a steady delta
    moves the anchor by itself and no further: lr = 0.1^(1 - t) · best^t, t = log H / log 30. That
    fall is Thinwire's own rule.

    Example:
        >>> [outer_rate(world, 100) for world in (1, 2, 4, 8, 64)]
        [0.4, 0.6, 0.6, 0.8, 0.8]
        >>> [round(outer_rate(2, period), 2) for period in (1, 5, 10, 30)]
        [0.1, 0.23, 0.34, 0.6]
    """
    # 1. The best rate of long rounds, between the measured numbers of replicas.
    below = max(count for count in RATES if count <= world)
    above = min((count for count in RATES if count >= world), default=below)
    part = math.log(world / below) / math.log(above / below) if above > below else 0.0
    best = RATES[below] + part * (RATES[above] - RATES[below])
    # 2. Shorter rounds: towards 1 - momentum, geometrically in the logarithm of the period.
    if period >= LONG:
        return best
    long = math.log(period) / math.log(LONG)
    return float((1 - MOMENTUM) ** (1 - long) * best**long)


@dataclass(frozen=True)
class optim(Outer):
    """Move by any optimiser of `torch.optim` that steps from gradients alone.

    Each parameter has its own shape and state.

    Args:
        name: its class, such as "AdamW" or "Muon" (which takes matrices only).
        settings: its arguments as code, such as "lr=0.3, betas=(0.9, 0.95)"; what is left out is as
            by default.

    Raises:
        StrategyError: no such optimiser, one that needs a closure or sparse gradients, or arguments
            that it refuses, in its own words. At attach: a parameter that it refuses.

    Example:
        >>> outer = optim("SGD", "lr=0.7, momentum=0.9, nesterov=True")
        >>> outer.make([nn.Parameter(torch.zeros(2))]).defaults["nesterov"]
        True
    """

    name: str
    settings: str = ""

    def __post_init__(self) -> None:
        self._settings()
        kind = getattr(torch.optim, self.name, None)
        if not (
            isinstance(kind, type)
            and issubclass(kind, torch.optim.Optimizer)
            and kind is not torch.optim.Optimizer
        ):
            raise StrategyError(
                f"{self!r}: torch.optim has no optimiser of that name; take one such as 'AdamW'"
            )
        # Which optimisers step from a gradient alone shows only when one does.
        try:
            self._first(torch.zeros(2, 2, dtype=torch.float64))
        except Exception as error:
            raise StrategyError(
                f"{self!r}: it cannot take a step from a gradient alone: {type(error).__name__}: "
                f"{str(error) or 'no reason given'}"
            ) from error

    def make(self, params: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimiser over these parameters."""
        made: torch.optim.Optimizer = getattr(torch.optim, self.name)(params, **self._settings())
        return made

    def init(self, spec: Spec, anchor: Tensor) -> State:
        children = {}
        for i, part in enumerate(spec.parts):
            try:
                first = self._first(anchor[part.begin : part.end].view(part.shape))
            except Exception as error:
                raise StrategyError(
                    f"Cannot use {self!r} on {part.name!r} of shape {part.shape}: {error}. Take "
                    "another outer optimiser"
                ) from error
            leaves = {"rounds": Leaf(torch.tensor(0), "replicated", part=part.name)}
            # Which state an optimiser has shows after a first step, here of zeros. Averages of the
            # parameter's shape lie flat over its span; counts and the like stay whole tensors.
            for key, value in first.items():
                span = (
                    spec.span(part.begin, part.end)
                    if value.shape == part.shape and value.is_floating_point() and part.shape
                    else None
                )
                initial = torch.zeros_like(value).reshape(-1) if span is not None else value
                leaves[key] = Leaf(
                    initial, "replicated", span, None if span is not None else part.name
                )
            children[str(i)] = State(leaves)
        return State(children=children)

    def update(self, anchor: Tensor, delta: Tensor, state: State, spec: Spec) -> Tensor:
        # 1. Parameters of each part's own shape, as views of the new anchor: the step moves it.
        new = anchor.clone()
        params = [nn.Parameter(new[part.begin : part.end].view(part.shape)) for part in spec.parts]
        optimizer = self.make(params)
        # 2. Give the optimiser gradients, and the state that was saved.
        for part, param, own in self._each(spec, params, state):
            # A copy, as some optimisers write into the gradient.
            param.grad = delta[part.begin : part.end].view(part.shape).to(param.dtype, copy=True)
            # In the first round it makes its own state.
            if int(own["rounds"].value):
                optimizer.state[param] = {
                    key: _opened(leaf, param) for key, leaf in own.leaves.items() if key != "rounds"
                }
        # 3. Step, and save its state by parameter.
        optimizer.step()
        for _, param, own in self._each(spec, params, state):
            own["rounds"].value = own["rounds"].value + 1
            for key, value in _tensors(optimizer.state[param]).items():
                leaf = own[key]
                if leaf.spec is not None:
                    leaf.flat = value.reshape(-1)
                else:
                    leaf.value = value.to(leaf.value.device, copy=True)
        return new

    def _each(
        self, spec: Spec, params: list[nn.Parameter], state: State
    ) -> Iterator[tuple[Part, nn.Parameter, State]]:
        return (
            (part, param, state.child(str(i)))
            for i, (part, param) in enumerate(zip(spec.parts, params, strict=True))
        )

    def _first(self, like: Tensor) -> dict[str, Tensor]:
        """Return its state of one parameter after a first step."""
        param = nn.Parameter(torch.zeros_like(like))
        optimizer = self.make([param])
        param.grad = torch.zeros_like(like)
        optimizer.step()
        return _tensors(optimizer.state[param])

    def _settings(self) -> dict[str, Any]:
        try:
            call = expression(f"f({self.settings})")
            assert isinstance(call, ast.Call)
            if call.args or any(each.arg is None for each in call.keywords):
                raise ValueError("give every argument by its name")
            return {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
        except (SyntaxError, ValueError, AssertionError) as error:
            raise StrategyError(
                f"optim({self.name!r}, {self.settings!r}): write settings such as 'lr=0.3, "
                f"betas=(0.9, 0.95)': {error}"
            ) from error


def _tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """Return an optimiser's state of a parameter, with numbers as tensors."""
    return {
        key: value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        for key, value in state.items()
        if value is not None
    }


def _opened(leaf: Leaf, param: Tensor) -> Tensor:
    """Return a stored tensor in the shape and on the device that the optimiser wants."""
    if leaf.spec is not None:
        return leaf.flat.view(param.shape).clone()
    # Counts stay on the host.
    return leaf.value.to(param.device, copy=True) if leaf.value.dim() else leaf.value.clone()


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
