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

import torch
from torch import Tensor

from thinwire.core import Codec, Coder, Grain, Leaf, Outcome, Rounds, Seat, Spec, State
from thinwire.errors import StrategyError
from thinwire.registry import inside


@dataclass(frozen=True)
class feedback(Codec):
    """Say x plus what the inner codec left unsaid before; 4 bytes a value of state (8 for float64).

    Args:
        inner: a lossy codec without feedback of its own.
        decay: how much of the residual is kept from flight to flight, in (0, 1]. 1 forgets nothing; 0.95 forgets stale parts.

    Raises:
        StrategyError: decay outside (0, 1], or `inner` loses nothing or has feedback itself.

    A codec of one packet settles its residual before it yields, so a later launch may start before the earlier one lands.
    Where y is not finite the residual stays; where the *sum* is not, the engine takes the residual back.

    Example:
        >>> from thinwire.what import topk
        >>> feedback(topk(0.01), decay=0.95)
        feedback(inner=topk(k=0.01, per=0), decay=0.95)
    """

    inner: Codec
    decay: float = 1.0

    def __post_init__(self) -> None:
        reasons = []
        if not 0 < self.decay <= 1:
            reasons.append(f"feedback(decay={self.decay}): the share of the residual that is kept lies in (0, 1]")
        if not self.inner.lossy:
            reasons.append(f"feedback({self.inner!r}): it loses nothing, so there is nothing to feed back; use it bare")
        if any(isinstance(member, feedback) for member in inside(self.inner)):
            reasons.append(f"feedback({self.inner!r}): one residual is enough; feedback within feedback would count a loss twice")
        if reasons:
            raise StrategyError(reasons)

    @property
    def grain(self) -> Grain:
        return self.inner.grain

    @property
    def summable(self) -> bool:
        return self.inner.summable

    @property
    def drops(self) -> bool:
        return self.inner.drops

    @property
    def opener(self) -> Coder | None:
        return self.inner.opener

    def init(self, spec: Spec, seat: Seat) -> State:
        residual = Leaf(torch.zeros(spec.numel, dtype=spec.work), "summed", spec, fade=self.decay, group=seat.group)
        return State({"residual": residual}, {"inner": self.inner.init(spec, seat)})

    def nbytes(self, spec: Spec) -> int | None:
        return self.inner.nbytes(spec)

    def max_nbytes(self, spec: Spec) -> int:
        return self.inner.max_nbytes(spec)

    def rounds(self, x: Tensor, spec: Spec, state: State, seat: Seat) -> Rounds:
        y = torch.add(x.to(spec.work), state["residual"].value, alpha=self.decay)
        coder = self.inner.opener
        if coder is None:
            outcome = yield from self.inner.rounds(y, spec, state.child("inner"), seat)
            assert outcome.sent is not None, f"{self.inner!r} talks in several rounds and must say what it sent"
            sent = outcome.sent()
            self._settle(state, y, sent)
            return Outcome(outcome.total, lambda: sent)
        packet = coder.packet(y, spec, state.child("inner"), seat)
        sent = packet.open(packet.payload, seat.rank)
        self._settle(state, y, sent)
        total = yield packet
        return Outcome(total, lambda: sent)

    @staticmethod
    def _settle(state: State, y: Tensor, sent: Tensor) -> None:
        leaf = state["residual"]
        new = y - sent
        finite = new.abs().amax().isfinite() if new.numel() else torch.ones((), dtype=torch.bool)
        leaf.value = torch.where(finite, new, leaf.value) if new.is_cuda else new if bool(finite) else leaf.value
