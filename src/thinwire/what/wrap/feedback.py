"""Add the compression error of each step to the next input: error feedback.

Steps, for each rank and flight, with residual e (at first 0):
    1. y = x + decay · e
    2. encode y with the inner codec; `sent` is what of it arrived
    3. e = y - sent
So the sum of all that was sent lags behind the sum of all x by one residual, whatever the codec
drops: sum(sent) = sum(x) - e for decay 1. It makes biased codecs (top-k, sign, low rank, 2 bits)
converge at the rate of uncompressed SGD. (Seide et al. 2014; Karimireddy et al. 2019,
arXiv:1901.09847.) Residuals are in the units of a contribution, so their *sum over ranks* is what
matters, and it survives a change of world size.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from thinwire.core import Codec, Coder, Leaf, Outcome, RankContext, Rounds, Spec, State, Traits
from thinwire.errors import StrategyError
from thinwire.kernels import fast
from thinwire.what.wrap._stored import Int8
from thinwire.what.wrap._wrap import KeepsResidual, Remembering, twice, what_is_left, where


@dataclass(frozen=True, repr=False)
class feedback(Remembering, KeepsResidual):
    """Send x plus the residual of earlier flights through the inner codec; 4 bytes a value of state
    (8 for float64, 2 stored in bf16, 1.02 in int8).

    Args:
        inner: a lossy codec without feedback of its own.
        decay: how much of the residual is kept from flight to flight, in (0, 1]. 1 forgets nothing;
            0.95 forgets stale parts.
        store: what the residual is kept in between flights. "bf16" halves its memory and rounds
            each entry by at most 2^-8 of itself a flight; "int8" quarters it and rounds by at most
            1/254 of the largest of its 256 neighbours. sum(sent) = sum(x) - e then holds to within
            what was rounded off. `None` keeps the work dtype, and loses nothing. A float64 span
            keeps float64 in any case.
        start: the step of training from which a residual is kept; before it, what is left encoded
            is lost.
        ramp: over how many steps, from `start`, the decay rises from 0 to its value, linearly.
        reset: forget the residual every so many steps of training: at the first flight of each
            `reset` steps. `None` never does.

    Raises:
        StrategyError: an argument outside the above, or `inner` loses nothing or has a residual
            itself.

    Steps are the schedule's, as `every(n)` counts them, not flights. A codec of one packet commits
    its residual before it yields, so a later launch may start before the earlier one lands. Where y
    is not finite the residual stays; where the *sum* is not, the engine takes the residual back.

    Example:
        >>> from thinwire.what import topk
        >>> feedback(topk(0.01), decay=0.95)
        feedback(inner=topk(k=0.01, per=0), decay=0.95)
        >>> feedback(topk(0.01), store="int8", ramp=1000)
        feedback(inner=topk(k=0.01, per=0), decay=1.0, store='int8', ramp=1000)
        >>> [feedback(topk(0.01), start=10, ramp=4).decay_at(step) for step in (9, 10, 11, 14, 99)]
        [0.0, 0.0, 0.25, 1.0, 1.0]
    """

    examples: ClassVar[tuple[str, ...]] = (
        "feedback(uniform(2))",
        "feedback(topk(0.05), decay=0.9)",
        "feedback(lowrank(2))",
        "feedback(threshold(1.0))",
        'feedback(cast("fp16"))',
        'feedback(topk(0.1), decay=0.5, store="bf16")',
        'feedback(topk(0.05), store="int8")',
        "feedback(uniform(3), start=1, ramp=3)",
        'feedback(topk(0.2), decay=0.9, store="int8", reset=2)',
        "feedback(by_role(matrix=lowrank(2), embedding=cast(), vector=uniform(4)))",
    )

    inner: Codec
    decay: float = 1.0
    store: Literal["bf16", "int8"] | None = None
    start: int = 0
    ramp: int = 0
    reset: int | None = None

    def __post_init__(self) -> None:
        reasons = twice(self)
        if not 0 < self.decay <= 1:
            reasons.append(
                f"feedback(decay={self.decay}): the share of the residual that is kept lies in "
                "(0, 1]"
            )
        if self.store not in (None, "bf16", "int8"):
            reasons.append(
                f"feedback(store={self.store!r}): choose 'bf16' or 'int8', or None for the work "
                "dtype"
            )
        if self.start < 0:
            reasons.append(f"feedback(start={self.start}): the first step of training is 0")
        if self.ramp < 0:
            reasons.append(f"feedback(ramp={self.ramp}): a decay rises over at least 0 steps")
        if self.reset is not None and self.reset < 2:
            reasons.append(
                f"feedback(reset={self.reset}): a residual that is forgotten at every step is "
                f"none; use {self.inner!r} bare"
            )
        if not self.inner.traits.lossy:
            reasons.append(
                f"feedback({self.inner!r}): it loses nothing, so there is nothing to feed back; "
                "use it bare"
            )
        if reasons:
            raise StrategyError(reasons)

    def __repr__(self) -> str:
        late = [
            field for field in fields(self)[2:] if getattr(self, field.name) != field.default
        ]  # printed only where they are set
        settings = "".join(f", {field.name}={getattr(self, field.name)!r}" for field in late)
        return f"{type(self).__name__}(inner={self.inner!r}, decay={self.decay!r}{settings})"

    @cached_property
    def traits(self) -> Traits:
        # int8 residuals share scales from where a span begins
        divides = self.inner.traits.divides and self.store != "int8"
        return replace(super().traits, divides=divides)

    def decay_at(self, step: int) -> float:
        """Return the decay of a flight at this step of training, where it does not forget."""
        if step < self.start:
            return 0.0
        return self.decay * min(1.0, (step - self.start) / self.ramp) if self.ramp else self.decay

    def decay_of(self, state: State, ctx: RankContext) -> float:
        """Return how much of the residual the flight of this ctx takes up: the decay, or 0 where it
        forgets."""
        if self.reset is None:
            return self.decay_at(ctx.step)
        # It forgets at the first flight of a new period, not at a multiple of `reset`.
        before = int(state["flown"].value)
        return (
            self.decay_at(ctx.step)
            if before < 0 or before // self.reset == ctx.step // self.reset
            else 0.0
        )

    def init(self, spec: Spec, ctx: RankContext) -> State:
        # Narrow storage is for float32 buckets; a float64 residual stays float64.
        narrow = spec.work == torch.float32
        dtype = torch.bfloat16 if self.store == "bf16" and narrow else spec.work
        residual = Leaf(
            torch.zeros(spec.numel, dtype=dtype), "summed", spec, fade=self.decay, group=ctx.group
        )
        if self.store == "int8" and narrow:
            residual.form = Int8(spec.numel)
            residual.flat = residual.value
        leaves = {"residual": residual}
        # The step of the last flight: schedules need not fly at multiples of `reset`.
        if self.reset is not None:
            leaves["flown"] = Leaf(torch.tensor(-1, device="cpu"), "private", part=spec.key)
        return State(leaves, {"inner": self.inner.init(spec, ctx)})

    def rounds(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Rounds:
        # Before `start` there is no residual: the inner codec sends alone.
        if ctx.step < self.start:
            return (yield from self.inner.rounds(x, spec, state.child("inner"), ctx))
        leaf = state["residual"]
        leaf.fade = self.decay_of(state, ctx)
        if self.reset is not None:
            state["flown"].value = torch.tensor(ctx.step, device="cpu")
        # 1. to 3. in one pass where the inner codec is one packet: kernels add, encode and
        # subtract.
        if isinstance(self.inner, Coder) and self.inner.single_packet_coder is self.inner:
            # A kernel reads bf16 as it is stored, and int8 where the codec's does.
            stored = leaf.form is None or self.inner.traits.reads_int8
            residual = leaf.value if stored else leaf.flat
            encoded = self.inner.encode_with_residual(
                x, residual, leaf.fade, spec, state.child("inner"), ctx
            )
            self._keep(leaf, encoded.residual, encoded.finite)
            total = yield encoded.packet
            return Outcome(total, encoded.sent)
        # Else 1. add, and 2. and 3. around the inner codec's own rounds.
        y = fast.summed(x.to(spec.work), leaf.flat, leaf.fade)

        def commit(sent: Tensor) -> None:
            new_residual = what_is_left(y, sent)
            self._keep(leaf, new_residual, fast.all_finite(new_residual))

        return (yield from self._send(y, spec, state, ctx, commit))

    def _keep(self, leaf: Leaf, new_residual: Tensor, finite: Tensor) -> None:
        """Store the new residual, unless it is not finite, before or after it is packed."""
        packed = new_residual.dtype == torch.uint8
        new = new_residual if packed else leaf.pack(new_residual)
        if new is not new_residual and new.is_floating_point():
            finite = finite & fast.all_finite(new)
        leaf.value = where(finite, new, leaf.value)

    def residual_of(self, spec: Spec, state: State, ctx: RankContext, *, faded: bool) -> Tensor:
        if not faded and ctx.step < self.start:
            return torch.full((spec.numel,), float("nan"), dtype=spec.work)
        leaf = state["residual"]
        return leaf.flat * self.decay_of(state, ctx) if faded else leaf.flat.clone()

    def rounded_off(self, residual: Tensor) -> Tensor:
        # bf16 rounds each value by itself, int8 by the largest of its block, at most of all.
        size = residual.double().abs().nan_to_num()
        if self.store == "bf16":
            return size * torch.finfo(torch.bfloat16).eps / 2
        if self.store == "int8" and size.numel():
            return (size.max() / 254 + torch.finfo(torch.float32).tiny).expand_as(size)
        return torch.zeros_like(size)
