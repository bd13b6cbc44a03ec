"""Share what codecs around a codec have in common, and `feedback`, `dgc` and `ef21` among them,
which remember what it left out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from thinwire.core import (
    Codec,
    Coder,
    Outcome,
    RankContext,
    Rounds,
    Spec,
    State,
    Traits,
    encode_packet,
    needs_input_later,
)
from thinwire.core.component import inside
from thinwire.kernels import fast, memory


class Wrapper(Codec):
    """A codec around a codec: grain, bytes and packets are the inner one's."""

    inner: Codec

    @cached_property
    def traits(self) -> Traits:
        inner = self.inner.traits
        return Traits(
            grain=inner.grain,
            summable=inner.summable,
            drops=inner.drops,
            needs_input_later=needs_input_later(self.inner),
            randomised=inner.randomised,
            cuts=inner.cuts,
        )

    @property
    def single_packet_coder(self) -> Coder | None:
        return self.inner.single_packet_coder

    def nbytes(self, spec: Spec) -> int | None:
        return self.inner.nbytes(spec)

    def max_nbytes(self, spec: Spec) -> int:
        return self.inner.max_nbytes(spec)

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        return self.inner.error_bound(x, spec, ctx)


class KeepsResidual(ABC):
    """Show a codec's residual, so that the checks can compare it with what was sent."""

    @abstractmethod
    def residual_of(self, spec: Spec, state: State, ctx: RankContext, *, faded: bool) -> Tensor:
        """Return the residual, NaN where none is kept: (spec.numel,) spec.work.

        faded: return what of it the flight of this `ctx` adds to its input.
        """

    def values_kept(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        """Return what of `x` is either sent or kept in the residual: (spec.numel,) spec.work."""
        return x.to(spec.work)

    def rounded_off(self, residual: Tensor) -> Tensor:
        """Bound what storing a residual may have rounded off: (spec.numel,) float64."""
        return torch.zeros_like(residual, dtype=torch.float64)


class Remembering(Wrapper):
    """A codec with a residual of what was not sent."""

    @property
    def _sending_codec(self) -> Codec:
        """The codec that encodes it."""
        return self.inner

    def _send(
        self,
        y: Tensor,
        spec: Spec,
        state: State,
        ctx: RankContext,
        commit: Callable[[Tensor], None],
    ) -> Rounds:
        """Send y through the inner codec and commit the residual; for a single packet before it
        yields, so that a later launch may build on it."""
        codec, inner = self._sending_codec, state.child("inner")
        # Several packets: what was sent is known after the last one only.
        if codec.single_packet_coder is None:
            outcome = yield from codec.rounds(y, spec, inner, ctx)
            assert outcome.sent is not None, (
                f"{codec!r} sends several packets and must return what it sent"
            )
            sent = outcome.sent()
            commit(sent)
            return Outcome(outcome.total, lambda: sent)
        # One packet: commit before it is yielded, so that the next launch has the residual at hand.
        once = encode_packet(codec, y, spec, inner, ctx) if isinstance(codec, Coder) else None
        packet = once or next(codec.rounds(y, spec, inner, ctx))
        # A payload that opens to itself may be written into by a route.
        own = packet.payload if packet.coder.traits.lossy else packet.payload.clone()
        sent = packet.open(own, ctx.rank)
        commit(sent)
        total = yield packet
        return Outcome(total, lambda: sent)


def what_is_left(y: Tensor, sent: Tensor) -> Tensor:
    """Return y - sent, in memory that is used again."""
    return torch.sub(y, sent, out=memory.empty_like(y))


def twice(codec: Remembering) -> list[str]:
    """Return why a codec that remembers cannot hold another, for the user."""
    if any(isinstance(component, Remembering) for component in inside(codec.inner)):
        name = type(codec).__name__
        return [
            (
                f"{name}({codec.inner!r}): one residual is enough; feedback within feedback would "
                "count a loss twice"
            )
        ]
    return []


def where(finite: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Return `new` where `finite` is true, else `old`; on a GPU without a wait."""
    return torch.where(finite, new, old) if new.is_cuda else new if bool(finite) else old


def where_finite(new: Tensor, old: Tensor, checked: Tensor) -> Tensor:
    """Return `new` where all of `checked` is finite, else `old`."""
    return where(fast.all_finite(checked), new, old)
