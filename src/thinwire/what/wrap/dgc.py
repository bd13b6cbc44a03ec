"""Deep Gradient Compression: momentum first, feedback after it, so that what waits gathers
momentum, too.

Steps, for each rank and flight, with velocity u and residual v (at first 0):
    1. u = momentum · u + x
    2. y = v + u; encode y with the inner codec, `sent` is what of it arrived
    3. v = y - sent
    4. where something was sent: u = 0 (masking), so that stale velocity does not push on
The optimiser is then plain SGD: its momentum is here. With feedback alone, momentum stands behind
the codec and an entry that waited for j flights misses the momentum that it would have gathered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from thinwire.core import Codec, Leaf, RankContext, Rounds, Spec, State
from thinwire.errors import StrategyError
from thinwire.what.wrap._wrap import KeepsResidual, Remembering, twice, what_is_left, where_finite


@dataclass(frozen=True)
class dgc(Remembering, KeepsResidual):
    """Send the sum of all momentum that was not sent yet; 8 bytes a value of state (16 for
    float64).

    Args:
        inner: a codec without a residual of its own, `topk` as a rule.
        momentum: how much of the velocity is kept from flight to flight, in (0, 1).
        mask: stop the velocity of what was sent. Without it, a codec that sends everything gives
            SGD with momentum exactly; with it, one that sends everything stops all velocities, and
            gives plain SGD.

    Raises:
        StrategyError: momentum outside (0, 1), or `inner` has a residual itself.

    Both states are *summed*: another world size takes up their sums over ranks. A flight that is
    not finite leaves them as they were. Where a later flight has built on one whose *sum* is not
    finite, what that one's velocity has given to v since stays there.

    Example:
        >>> from thinwire.what import topk
        >>> dgc(topk(0.001))
        dgc(inner=topk(k=0.001, per=0), momentum=0.9, mask=True)

    Source: Lin, Han, Mao, Wang & Dally 2018, arXiv:1712.01887. Differs from the paper: the largest
    are exact, not sampled; local gradients are clipped by `clip(dgc(…), norm=…)` around it; a
    density warm-up is the schedule's; what `>>` rounds off stays in v; no Nesterov form.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "dgc(topk(0.1))",
        "dgc(topk(5, per=64) >> uniform(4), 0.5, mask=False)",
        "dgc(uniform(2))",
    )

    inner: Codec
    momentum: float = 0.9
    mask: bool = True

    def __post_init__(self) -> None:
        reasons = twice(self)
        if not 0 < self.momentum < 1:
            reasons.append(
                f"dgc(momentum={self.momentum}): it lies in (0, 1); without momentum, use "
                f"feedback({self.inner!r})"
            )
        if reasons:
            raise StrategyError(reasons)

    def init(self, spec: Spec, ctx: RankContext) -> State:
        velocity = Leaf(
            torch.zeros(spec.numel, dtype=spec.work),
            "summed",
            spec,
            fade=self.momentum,
            group=ctx.group,
        )
        residual = Leaf(torch.zeros(spec.numel, dtype=spec.work), "summed", spec, group=ctx.group)
        return State(
            {"velocity": velocity, "residual": residual}, {"inner": self.inner.init(spec, ctx)}
        )

    def rounds(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Rounds:
        velocity, residual = state["velocity"], state["residual"]
        u = velocity.value.mul(self.momentum).add_(x)  # rounded as torch.optim.SGD does it
        y = residual.value + u

        def commit(sent: Tensor) -> None:
            # With `mask`, what was sent loses its momentum, which would push on with what is done.
            left = what_is_left(y, sent)
            residual.value = where_finite(left, residual.value, left)
            velocity.value = where_finite(
                torch.where(sent != 0, 0, u) if self.mask else u, velocity.value, left
            )

        return (yield from self._send(y, spec, state, ctx, commit))

    def residual_of(self, spec: Spec, state: State, ctx: RankContext, *, faded: bool) -> Tensor:
        velocity, residual = state["velocity"], state["residual"].value
        return residual + velocity.value * velocity.fade if faded else residual.clone()
