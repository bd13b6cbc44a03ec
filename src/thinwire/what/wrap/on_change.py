"""Send a contribution only when it has changed enough; otherwise the others use its last one.

Steps, for each rank and flight, with h this rank's contribution as the others know it, and H the
sum of all h (at first 0), over K ranks:
    1. d = x - h
    2. where ||d||² <= xi / K² · (the sum of ||H||² over the last `window` flights), send an empty
       payload
    3. else encode d with the inner codec; `sent` is what of it arrived, and h = h + sent
    4. H = H + the sum over ranks of what was sent: the total is H
For gradients and plain gradient descent H is (w(t) - w(t+1)) / lr, so the rule is that of LAG-WK: a
gradient stands while its change is small beside the recent moves of the parameters. Each span (a
bucket, or a route's share of one) has a rule of its own; where all of them are silent, the paper's
holds for the whole, as both sides add up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from thinwire.core import Coder, Leaf, RankContext, Rounds, Spec, State, Traits
from thinwire.errors import StrategyError
from thinwire.what.scalar.identity import identity
from thinwire.what.wrap._wrap import twice, where_finite
from thinwire.what.wrap.ef21 import ef21


@dataclass(frozen=True)
class on_change(ef21):
    """Send the change of x since this rank last sent one, once it is large enough; 8 bytes a value
    of state (16 for float64).

    Args:
        inner: the codec that sends it; `identity()`, or a codec that loses something, which the
            next change puts right (as in LAQ).
        xi: how large a change may be and go encoded, at least 0. At 0 a rank is silent only where
            nothing has changed.
        window: how many of the last totals a change is compared with, at least 1. After a fresh
            start, all ranks send until there is one.
        longest: flights after which a rank sends in any case; `None` for no limit.

    Raises:
        StrategyError: an argument outside the above, or `inner` remembers, or talks in several
            rounds.

    Each rank decides for itself and its payload says what it decided, so ranks cannot disagree and
    nothing is agreed on before a flight. State is as in `ef21`; the norms of the last totals start
    anew in another world or bucket layout, and every rank then sends once.

    Example:
        >>> on_change()
        on_change(inner=identity(), xi=0.1, window=10, longest=None)
        >>> x, ctx = torch.ones(8), RankContext(0, (0,), step=0, seed=0)
        >>> spec = Spec((), 0, 8, torch.float32)
        >>> state, sizes = on_change().init(spec, ctx), []
        >>> for scale in (1.0, 1.1, 2.0):
        ...     flow = on_change().rounds(scale * x, spec, state, ctx)
        ...     packet = next(flow)
        ...     sizes.append(packet.payload.numel())
        ...     try:
        ...         flow.send(packet.open(packet.payload, sender=0))
        ...     except StopIteration as stop:
        ...         total = stop.value.total
        >>> sizes, total[0]
        ([32, 0, 32], tensor(2.))

    Source: Chen, Giannakis, Sun & Yin 2018, arXiv:1805.09965 (LAG-WK; xi and window as in its
    authors' code, github.com/chentianyi1991/LAG-code); with a quantiser, and with `longest`, Sun et
    al. 2019, arXiv:1909.07588 (LAQ). Differs from the
    papers: the rule holds span by span; no terms of quantisation errors in it; of stochastic
    gradients it compares two batches, where LASG (Chen, Sun & Yin 2020, arXiv:2002.11360) takes
    both gradients of one.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "on_change()",
        "on_change(uniform(4), xi=0.0)",
        "on_change(topk(0.3), 0.05, 2, longest=1)",
        "on_change(uniform(3), xi=9.0)",
    )

    inner: Coder = identity()
    xi: float = 0.1
    window: int = 10
    longest: int | None = None

    def __new__(cls, *args: Any, **settings: Any) -> Self:  # noqa: ARG004  (its own checks say more than a type's name)
        return object.__new__(cls)

    def __post_init__(self) -> None:
        reasons = twice(self)
        if not reasons and not (
            isinstance(self.inner, Coder) and self.inner.single_packet_coder is self.inner
        ):
            reasons.append(
                f"on_change({self.inner!r}): the inner codec must send one packet and remember "
                "nothing, such as uniform(4)"
            )
        if not 0 <= self.xi < math.inf:
            reasons.append(
                f"on_change(xi={self.xi}): what may go encoded is at least 0, and finite"
            )
        if self.window < 1:
            reasons.append(
                f"on_change(window={self.window}): a change is compared with at least 1 total"
            )
        if self.longest is not None and self.longest < 1:
            reasons.append(
                f"on_change(longest={self.longest}): a rank may be silent for at least 1 flight; "
                f"to send always, use {self.inner!r}"
            )
        if reasons:
            raise StrategyError(reasons)

    @cached_property
    def traits(self) -> Traits:
        lossy = self.inner.traits.lossy
        # a payload that may be empty has to be opened
        return replace(super().traits, summable=False, drops=lossy, exact_at_first=not lossy)

    @property
    def _sending_codec(self) -> Coder:
        return _Hushed(self.inner)

    def nbytes(self, spec: Spec) -> int | None:
        return self._sending_codec.nbytes(spec)

    def init(self, spec: Spec, ctx: RankContext) -> State:
        state = super().init(spec, ctx)
        # Zeros at first: then no change is small enough, and every rank sends.
        state.leaves["norms"] = Leaf(
            torch.zeros(self.window, dtype=spec.work), "private", part=spec.key
        )
        if self.longest is not None:
            state.leaves["silent"] = Leaf(torch.tensor(0, device="cpu"), "private", part=spec.key)
        return state

    def rounds(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Rounds:
        # 1. and 2. Compare the change with how far the totals moved of late.
        norms = state["norms"]
        change = x.to(spec.work) - state["known"].value
        bound = norms.value.sum() * (self.xi / ctx.world**2)
        quiet = bool(change.square().sum() <= bound)  # of what is not finite, never
        # A rank silent for `longest` flights sends, however small its change.
        if self.longest is not None:
            silent = state["silent"]
            quiet = quiet and int(silent.value) < self.longest
            silent.value = silent.value + 1 if quiet else torch.zeros_like(silent.value)
        # 3. and 4. A silent rank takes part in the round: a change of zero is an empty payload.
        outcome = yield from self._catch_up(
            torch.zeros_like(change) if quiet else change, spec, state, ctx
        )
        # The newest total enters the window, unless it is not finite.
        newest = outcome.total.square().sum().view(1)
        norms.value = where_finite(torch.cat([newest, norms.value[:-1]]), norms.value, newest)
        return outcome


@dataclass(frozen=True)
class _Hushed(Coder):
    """Zeros in no bytes, and all else as the inner codec encodes it; it lives for one flight and is
    never configured."""

    inner: Coder

    @cached_property
    def traits(self) -> Traits:
        return Traits(lossy=self.inner.traits.lossy)

    def nbytes(self, spec: Spec) -> int | None:
        return 0 if self.inner.nbytes(spec) == 0 else None

    def max_nbytes(self, spec: Spec) -> int:
        return self.inner.max_nbytes(spec)

    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        if not bool(x.any()):
            return torch.empty(0, dtype=torch.uint8, device=x.device)
        return self.inner.encode(x, spec, state, ctx)

    def decode(
        self, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        if not payload.numel():
            return torch.zeros(spec.numel, dtype=spec.work, device=payload.device)
        return self.inner.decode(payload, spec, state, ctx, sender)

    def accumulate(
        self,
        total: Tensor,
        payload: Tensor,
        spec: Spec,
        state: State,
        ctx: RankContext,
        sender: int,
    ) -> None:
        if payload.numel():
            self.inner.accumulate(total, payload, spec, state, ctx, sender)
