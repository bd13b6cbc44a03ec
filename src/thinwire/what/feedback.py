"""Error feedback: what was not said this time is said next time.

Steps, for each rank and flight, with residual e (at first 0):
    1. y = x + decay · e
    2. say y through the inner codec; `sent` is what of it arrived
    3. e = y - sent
So the sum of all that was sent lags behind the sum of all x by one residual, whatever the codec drops:
sum(sent) = sum(x) - e for decay 1. It makes biased codecs (top-k, sign, low rank, 2 bits) converge at the rate of uncompressed SGD.
(Seide et al. 2014; Karimireddy et al. 2019, arXiv:1901.09847.) Residuals are in the units of a contribution, so their *sum over ranks* is
what matters, and it survives a change of world size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from thinwire.core import Codec, Leaf, Rounds, Seat, Spec, State
from thinwire.errors import StrategyError
from thinwire.what._wrap import Remembering, twice, where_finite


@dataclass(frozen=True, repr=False)
class feedback(Remembering):
    """Say x plus what the inner codec left unsaid before; 4 bytes a value of state (8 for float64, 2 if stored in bf16).

    Args:
        inner: a lossy codec without feedback of its own.
        decay: how much of the residual is kept from flight to flight, in (0, 1]. 1 forgets nothing; 0.95 forgets stale parts.
        store: what the residual is kept in between flights: "bf16" halves its memory and rounds each entry by at most 2^-8 of itself a
            flight, so sum(sent) = sum(x) - e only to within what was rounded off; `None` keeps the work dtype, and loses nothing.
            A float64 span keeps float64 either way: bf16 has not its range.

    Raises:
        StrategyError: decay outside (0, 1], `store` is another word, or `inner` loses nothing or has a residual itself.

    A codec of one packet settles its residual before it yields, so a later launch may start before the earlier one lands.
    Where y is not finite the residual stays; where the *sum* is not, the engine takes the residual back.

    Example:
        >>> from thinwire.what import topk
        >>> feedback(topk(0.01), decay=0.95)
        feedback(inner=topk(k=0.01, per=0), decay=0.95)
        >>> feedback(topk(0.01), store="bf16")
        feedback(inner=topk(k=0.01, per=0), decay=1.0, store='bf16')
    """

    inner: Codec
    decay: float = 1.0
    store: Literal["bf16"] | None = None

    def __post_init__(self) -> None:
        reasons = twice(self)
        if not 0 < self.decay <= 1:
            reasons.append(f"feedback(decay={self.decay}): the share of the residual that is kept lies in (0, 1]")
        if self.store not in (None, "bf16"):
            reasons.append(f"feedback(store={self.store!r}): choose 'bf16', or None for the work dtype")
        if not self.inner.lossy:
            reasons.append(f"feedback({self.inner!r}): it loses nothing, so there is nothing to feed back; use it bare")
        if reasons:
            raise StrategyError(reasons)

    def __repr__(self) -> str:
        store = f", store={self.store!r}" if self.store else ""
        return f"{type(self).__name__}(inner={self.inner!r}, decay={self.decay!r}{store})"

    def init(self, spec: Spec, seat: Seat) -> State:
        dtype = torch.bfloat16 if self.store and spec.work == torch.float32 else spec.work
        residual = Leaf(torch.zeros(spec.numel, dtype=dtype), "summed", spec, fade=self.decay, group=seat.group)
        return State({"residual": residual}, {"inner": self.inner.init(spec, seat)})

    def rounds(self, x: Tensor, spec: Spec, state: State, seat: Seat) -> Rounds:
        leaf = state["residual"]
        y = torch.add(x.to(spec.work), leaf.value.to(spec.work), alpha=self.decay)

        def settle(sent: Tensor) -> None:
            left = (y - sent).to(leaf.value.dtype)
            leaf.value = where_finite(left, leaf.value, left)

        return (yield from self._say(y, spec, state, seat, settle))
