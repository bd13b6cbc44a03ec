"""Send how x has changed since the others' copy of it, so that their copies catch up: EF21.

Steps, for each rank and flight, with h this rank's contribution as the others know it, and H the
sum of all h (at first 0):
    1. d = x - h; encode d with the inner codec, `sent` is what of it arrived
    2. h = h + sent
    3. H = H + the sum over ranks of what was sent: the total is H
Feedback sends late what was left out; EF21 corrects the others' copy of the whole of x. Of
an x that stands still it leaves ||x - h||² <= (1 - δ)^t ||x||² after t flights of a codec that
keeps a share δ, so exact gradients converge to the exact minimum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from thinwire.core import Codec, Coder, Leaf, Outcome, RankContext, Rounds, Spec, State, Traits
from thinwire.core.component import inside
from thinwire.errors import StrategyError
from thinwire.what.wrap._wrap import Remembering, twice, where_finite

_FLOATS = Spec((), 0, 1, torch.float32)
_SHORT = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class ef21(Remembering):
    """Send the change of x since the last flight, and return the sum of all known h; 8 bytes a
    value of state (16 for float64).

    Args:
        inner: a lossy codec without a residual of its own.

    Raises:
        StrategyError: `inner` loses nothing, or has a residual itself.

    h is *summed* state and H *replicated*: another world size deals out the sum of all h, so H
    stays the sum of them. A flight whose sum is not finite leaves both as they were, on every rank.

    Example:
        >>> from thinwire.what import topk
        >>> ef21(topk(0.01))
        ef21(inner=topk(k=0.01, per=0))

    Source: Richtárik, Sokolov & Fatkhullin 2021, arXiv:2106.05203. Differs from the paper: h starts
    at 0, not at the first gradient, which would be a dense flight.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "ef21(topk(0.3))",
        "ef21(lowrank(2))",
        "ef21(uniform(2))",
    )

    inner: Codec

    def __post_init__(self) -> None:
        reasons = twice(self)
        if not self.inner.traits.lossy:
            reasons.append(
                f"ef21({self.inner!r}): it loses nothing, so there is nothing to catch up with; "
                "use it bare"
            )
        if reasons:
            raise StrategyError(reasons)

    @cached_property
    def traits(self) -> Traits:
        # H would keep for good what a route loses as it adds in 16 bits, or encodes a sum of
        # changes again: then they travel once
        coders = [component for component in inside(self.inner) if isinstance(component, Coder)]
        short = any(coder.sum_dtype(_FLOATS) in _SHORT for coder in coders)
        inner = super().traits
        summable = inner.summable and not short
        return replace(inner, summable=summable, drops=inner.drops or not summable)

    @property
    def single_packet_coder(self) -> None:
        """Return `None`: nobody opens a packet alone, as what was known is added to it."""

    def init(self, spec: Spec, ctx: RankContext) -> State:
        known_leaf = Leaf(torch.zeros(spec.numel, dtype=spec.work), "summed", spec, group=ctx.group)
        total = Leaf(torch.zeros(spec.numel, dtype=spec.work), "replicated", spec)
        return State({"known": known_leaf, "total": total}, {"inner": self.inner.init(spec, ctx)})

    def rounds(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Rounds:
        return (yield from self._catch_up(x.to(spec.work) - state["known"].value, spec, state, ctx))

    def _catch_up(self, change: Tensor, spec: Spec, state: State, ctx: RankContext) -> Rounds:
        """Send a change of h and return the new sum of all h."""
        known_leaf, total = state["known"], state["total"]
        before, after = known_leaf.value, known_leaf.value

        def commit(sent: Tensor) -> None:
            nonlocal after
            after = known_leaf.value = where_finite(before + sent, before, sent)

        # 1. and 2. Send d; `commit` moves h by what arrived, unless that is not finite.
        outcome = yield from self._send(change, spec, state, ctx, commit)
        sent = outcome.sent
        assert sent is not None
        # 3. H moves by the sum over ranks.
        new_total = total.value + outcome.total
        total.value = where_finite(new_total, total.value, outcome.total)
        # where the sum is no number, H is not moved, so every rank takes its own step back
        undone = before if known_leaf.value is after else known_leaf.value - (after - before)
        known_leaf.value = where_finite(known_leaf.value, undone, outcome.total)
        return Outcome(new_total, lambda: before + sent())

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        error = self.inner.error_bound(x, spec, ctx)
        # what was sent before may have any size; its own tests bound it
        return error + 2**20 * x.double().abs().max() if spec.numel else error
