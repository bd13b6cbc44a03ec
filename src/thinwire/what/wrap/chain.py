"""Encode a smaller core of a tensor, with side bytes, by a second codec: `a >> b`.

`topk(64, per=4096) >> uniform(bits=2)` sends which entries are the largest (side bytes) and their
values in 2 bits (core). The payload is a's side bytes, then b's payload of the core; where a's
sizes depend on the data, 8 bytes of count come first.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from thinwire.core import (
    Codec,
    Coder,
    EncodedWithResidual,
    Packet,
    RankContext,
    Spec,
    State,
    Traits,
    check_nbytes,
)
from thinwire.errors import PayloadError, StrategyError
from thinwire.kernels import fast
from thinwire.what.scalar.identity import identity

_COUNT = 8  # bytes of the count that goes before a data-sized core


class Transform(Coder):
    """A codec of the form core + side bytes; alone, it sends its core as it is. Cores are of the
    span's work dtype.

    A transform gives `split`, `join`, `core_numel` and `side_nbytes`.
    """

    @abstractmethod
    def split(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> tuple[Tensor, Tensor]:
        """Split x (spec.numel,) into core (c,) spec.work and side (s,) uint8."""

    @abstractmethod
    def join(
        self, core: Tensor, side: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        """Undo `split`: (spec.numel,) spec.work."""

    @abstractmethod
    def core_numel(self, spec: Spec) -> int | None:
        """Return c, or `None` where the data decides."""

    def add(
        self,
        total: Tensor,
        core: Tensor,
        side: Tensor,
        spec: Spec,
        state: State,
        ctx: RankContext,
        sender: int,
    ) -> None:
        """`total += join(core, side)`; a transform that places few values overrides it, and adds
        those."""
        total.add_(self.join(core, side, spec, state, ctx, sender))

    def put(
        self,
        out: Tensor,
        core: Tensor,
        side: Tensor,
        spec: Spec,
        state: State,
        ctx: RankContext,
        sender: int,
    ) -> None:
        """Write join(core, side) to `out`; a transform overrides it where it can write there at
        once."""
        out.copy_(self.join(core, side, spec, state, ctx, sender))

    def split_with_residual(
        self, x: Tensor, residual: Tensor, decay: float, spec: Spec, state: State, ctx: RankContext
    ) -> tuple[Tensor, Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """Split `x + decay * residual`; return core, side bytes and a function for the residual.

        The function takes what the core decodes to; it returns the new residual and whether that
        is finite. A transform that keeps few values overrides this, and reads only those.
        """
        # y is ours, so the residual takes its memory.
        y = fast.summed(x.to(spec.work), residual, decay)
        core, side = self.split(y, spec, state, ctx)

        def residual_of(decoded: Tensor) -> tuple[Tensor, Tensor]:
            rest = y.sub_(self.join(decoded, side, spec, state, ctx, ctx.rank))
            return rest, fast.all_finite(rest)

        return core, side, residual_of

    @abstractmethod
    def side_nbytes(self, spec: Spec, core_numel: int) -> int:
        """Return s, given c."""

    def max_core_numel(self, spec: Spec) -> int:
        fixed = self.core_numel(spec)
        return spec.numel if fixed is None else fixed

    def sum_dtype(self, spec: Spec) -> torch.dtype | None:
        return chain(self, identity()).sum_dtype(spec)

    def nbytes(self, spec: Spec) -> int | None:
        return chain(self, identity()).nbytes(spec)

    def max_nbytes(self, spec: Spec) -> int:
        return chain(self, identity()).max_nbytes(spec)

    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        return chain(self, identity()).encode(x, spec, _alone(state), ctx)

    def decode(
        self, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        return chain(self, identity()).decode(payload, spec, _alone(state), ctx, sender)

    def fill(
        self, out: Tensor, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> None:
        chain(self, identity()).fill(out, payload, spec, _alone(state), ctx, sender)

    def accumulate(
        self,
        total: Tensor,
        payload: Tensor,
        spec: Spec,
        state: State,
        ctx: RankContext,
        sender: int,
    ) -> None:
        chain(self, identity()).accumulate(total, payload, spec, _alone(state), ctx, sender)

    def encode_with_residual(
        self, x: Tensor, residual: Tensor, decay: float, spec: Spec, state: State, ctx: RankContext
    ) -> EncodedWithResidual:
        both = _alone(state)
        encoded = chain(self, identity()).encode_with_residual(x, residual, decay, spec, both, ctx)
        return replace(encoded, packet=Packet.of(encoded.packet.payload, self, spec, state, ctx))

    def __rshift__(self, other: Codec) -> chain:
        return chain(self, other)  # type: ignore[arg-type]  # chain says why not, where it does not fit

    def error_spread(
        self,
        error: Tensor,
        core: Tensor,
        side: Tensor,
        spec: Spec,
        state: State,
        ctx: RankContext,
    ) -> Tensor:
        """Bound what errors of up to `error` of each core value come to in x: (spec.numel,)
        float64.

        As inherited, for a transform that only places core values; others override it.
        """
        return self.join(error.to(spec.work), side, spec, state, ctx, ctx.rank).double()

    @property
    def keeps_mean(self) -> bool:
        """Return whether x is the mean where the core arrives right in the mean."""
        return self.traits.unbiased


def _alone(state: State) -> State:
    """Return a transform's state as the chain has it that sends its core as it is."""
    return State(children={"first": state, "second": State()})


@dataclass(frozen=True, repr=False)
class chain(Coder):
    """`first >> second`; made by `>>`, which associates to the right whatever the brackets.

    Raises:
        StrategyError: `first` is no transform, or `second` keeps a residual or talks in several
            rounds.
    """

    examples: ClassVar[tuple[str, ...]] = (
        'topk(5, per=64) >> uniform(2, grid="rise")',
        "threshold(1.0) >> cast()",
        "topk(0.2) >> threshold(0.1)",
        'randomk(0.5, unbiased=True) >> uniform(4, rounding="stochastic")',
        "topk(0.5) >> randomk(0.5) >> cast()",
    )

    first: Transform
    second: Coder

    def __new__(cls, *args: Any, **settings: Any) -> Self:  # noqa: ARG004  (its own checks say more than a type's name)
        return object.__new__(cls)

    def __post_init__(self) -> None:
        if not isinstance(self.first, Transform):
            raise StrategyError(
                f"{self.first!r} >> {self.second!r}: the left side must hand on a core (topk, "
                "threshold, randomk), not bytes"
            )
        if not isinstance(self.second, Coder):
            raise StrategyError(
                f"{self.first!r} >> {self.second!r}: the right side must be stateless and send "
                "one packet, since a core's indices move from step "
                "to step. Put feedback(…) around the whole chain, lowrank beside it with by_role"
            )
        if self.second.traits.needs_base:
            raise StrategyError(
                f"{self.first!r} >> {self.second!r}: the right side compares with base values, and "
                "a core has none. Put it on the left, as in visible() >> uniform(8)"
            )

    def __repr__(self) -> str:
        return f"{self.first!r} >> {self.second!r}"

    def __rshift__(self, other: Codec) -> chain:
        if not isinstance(self.second, Transform | chain):
            raise StrategyError(
                f"{self!r} >> {other!r}: {self.second!r} hands on bytes, not a core; nothing can "
                "follow it"
            )
        return chain(self.first, self.second >> other)

    @cached_property
    def traits(self) -> Traits:
        first, second = self.first.traits, self.second.traits
        return Traits(
            grain=first.grain,
            lossy=first.lossy or second.lossy,
            summable=first.summable and second.summable,
            drops=first.drops or second.drops,
            randomised=first.randomised or second.randomised,
            unbiased=self.first.keeps_mean and second.unbiased,
            cuts=first.cuts + second.cuts,
        )

    def sum_dtype(self, spec: Spec) -> torch.dtype | None:
        fixed = self.first.core_numel(spec)
        if not self.first.traits.summable or fixed is None:
            return None
        return self.second.sum_dtype(self._core(spec, fixed))

    def init(self, spec: Spec, ctx: RankContext) -> State:
        core = self._core(spec, self.first.max_core_numel(spec))
        return State(
            children={"first": self.first.init(spec, ctx), "second": self.second.init(core, ctx)}
        )

    def nbytes(self, spec: Spec) -> int | None:
        fixed = self.first.core_numel(spec)
        if fixed is None:
            return None
        inner = self.second.nbytes(self._core(spec, fixed))
        return None if inner is None else inner + self.first.side_nbytes(spec, fixed)

    def max_nbytes(self, spec: Spec) -> int:
        most = self.first.max_core_numel(spec)
        head = 0 if self.first.core_numel(spec) is not None else _COUNT
        return (
            head
            + self.first.side_nbytes(spec, most)
            + self.second.max_nbytes(self._core(spec, most))
        )

    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        core, side = self.first.split(x, spec, state.child("first"), ctx)
        return self._framed(core, side, self._inner(core, spec, state, ctx), spec)

    def _inner(self, core: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        return self.second.encode(
            core, self._core(spec, core.numel()), state.child("second"), ctx.child(spec.key)
        )

    def _framed(self, core: Tensor, side: Tensor, inner: Tensor, spec: Spec) -> Tensor:
        """Join side bytes and the core's payload, after a count where the data decides it."""
        if self.first.core_numel(spec) is not None:
            return torch.cat([side, inner])
        if not core.numel():
            return inner.new_empty(0)  # nothing to say: an empty payload, not even a count
        count = torch.tensor([core.numel()], dtype=torch.int64).view(torch.uint8).to(inner.device)
        return torch.cat([count, side, inner])

    def decode(
        self, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        core, side = self._opened(payload, spec, state, ctx, sender)
        return self.first.join(core, side, spec, state.child("first"), ctx, sender)

    def fill(
        self, out: Tensor, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> None:
        core, side = self._opened(payload, spec, state, ctx, sender)
        self.first.put(out, core, side, spec, state.child("first"), ctx, sender)

    def _opened(
        self, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> tuple[Tensor, Tensor]:
        """Return the core, and the side bytes."""
        # 1. The core's size: from the payload where the data decides it.
        count = self.first.core_numel(spec)
        if count is None:
            count, payload = self._count(payload, spec)
        # 2. The side bytes, then the second codec's payload, which must fill the rest.
        inner_nbytes = self.second.nbytes(self._core(spec, count))
        cut = self.first.side_nbytes(spec, count)
        check_nbytes(
            self,
            payload,
            payload.numel()
            if inner_nbytes is None and payload.numel() >= cut
            else cut + (inner_nbytes or 0),
        )
        core = self.second.decode(
            payload[cut:],
            self._core(spec, count),
            state.child("second"),
            ctx.child(spec.key),
            sender,
        )
        return core, payload[:cut]

    def accumulate(
        self,
        total: Tensor,
        payload: Tensor,
        spec: Spec,
        state: State,
        ctx: RankContext,
        sender: int,
    ) -> None:
        core, side = self._opened(payload, spec, state, ctx, sender)
        self.first.add(total, core, side, spec, state.child("first"), ctx, sender)

    def encode_with_residual(
        self, x: Tensor, residual: Tensor, decay: float, spec: Spec, state: State, ctx: RankContext
    ) -> EncodedWithResidual:
        # 1. The first codec adds the residual and splits; `residual_of` waits for the decoded core.
        core, side, residual_of = self.first.split_with_residual(
            x, residual.to(spec.work), decay, spec, state.child("first"), ctx
        )
        # 2. The second codec encodes the core.
        inner = self._inner(core, spec, state, ctx)
        payload = self._framed(core, side, inner, spec)
        # What opens to itself may lie in y, which is written into.
        # 3. Decode it as the receivers will: the difference is the new residual.
        own = inner if self.second.traits.lossy else inner.clone()
        decoded = self.second.decode(
            own,
            self._core(spec, core.numel()),
            state.child("second"),
            ctx.child(spec.key),
            ctx.rank,
        )
        new_residual, finite = residual_of(decoded)
        packet = Packet.of(payload, self, spec, state, ctx)
        # What may be added is added in place.
        own_payload = payload.clone() if packet.sums else payload
        return EncodedWithResidual(
            packet, new_residual, finite, lambda: packet.open(own_payload, ctx.rank)
        )

    def _count(self, payload: Tensor, spec: Spec) -> tuple[int, Tensor]:
        """Return the count before a data-sized core, and what follows it."""
        # An empty payload stands for no entries, without a count.
        if not payload.numel():
            return 0, payload
        if payload.numel() < _COUNT:
            raise PayloadError(
                f"{self!r}: {payload.numel()} bytes are too few for a count; the payload was cut"
            )
        count = int(payload[:_COUNT].cpu().clone().view(torch.int64))
        if not 0 < count <= self.first.max_core_numel(spec):
            raise PayloadError(
                f"{self!r}: a payload that claims {count} values of {spec.numel}; it is corrupted "
                "or of another span"
            )
        return count, payload[_COUNT:]

    def _core(self, spec: Spec, numel: int) -> Spec:
        """Return the span that `second` sees: the core has no parts, its values no names."""
        return Spec((), 0, numel, spec.work)

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        # The first codec's own error, and what the second one's error of the core becomes in x.
        state = self.init(spec, ctx).child("first")
        core, side = self.first.split(x, spec, state, ctx)
        inner = self._core(spec, core.numel())
        error = self.second.error_bound(core, inner, ctx.child(spec.key))
        spread = self.first.error_spread(error, core, side, spec, state, ctx)
        return self.first.error_bound(x, spec, ctx) + spread * (1 + 1e-6)
