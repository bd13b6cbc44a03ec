"""Define codecs, the packets that they send, and the outcome of a flight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeAlias, cast

import torch
from torch import Tensor

from thinwire.core.component import Component
from thinwire.core.spec import Grain, RankContext, Spec
from thinwire.core.state import State
from thinwire.errors import PayloadError, StrategyError
from thinwire.kernels import fast, int8


@dataclass(frozen=True, slots=True)
class Packet:
    """A contiguous uint8 buffer that travels, and how its answer is opened.

    payload: (nbytes,) uint8; scales and indices are inside it.
    spec: what it decodes to (the span, or an intermediate of the codec's maths such as PowerSGD's
    factors).
    sums: (nbytes, dtype) of the runs that may be added unopened as numbers; empty where the payload
    must be opened.
    """

    payload: Tensor
    spec: Spec
    coder: Coder
    state: State
    ctx: RankContext
    sums: tuple[tuple[int, torch.dtype], ...] = ()

    @classmethod
    def of(
        cls, payload: Tensor, coder: Coder, spec: Spec, state: State, ctx: RankContext
    ) -> Packet:
        """Wrap a payload that `coder` made; all of it may be added unopened, or none."""
        dtype = coder.sum_dtype(spec)
        sums = ((payload.numel(), dtype),) if dtype is not None else ()
        return cls(payload, spec, coder, state, ctx, sums)

    @property
    def fixed(self) -> bool:
        """Return whether all packets of this round have one length; else lengths go first."""
        return self.coder.nbytes(self.spec) is not None

    def open(self, payload: Tensor, sender: int) -> Tensor:
        """Return what `sender`'s payload of the same round decodes to: (spec.numel,) spec.work."""
        return self.coder.decode(payload, self.spec, self.state, self.ctx, sender)

    def add(self, total: Tensor | None, payload: Tensor, sender: int) -> Tensor:
        """Add what `sender`'s payload decodes to to `total`, in place; return a new tensor where
        there is no total yet."""
        if total is None:
            return self.open(payload, sender)
        self.coder.accumulate(total, payload, self.spec, self.state, self.ctx, sender)
        return total


@dataclass(frozen=True, slots=True)
class EncodedWithResidual:
    """A packet, the new residual (spec.numel,), and whether that is finite (bool, no dimension).

    sent: what the packet's payload decodes to.
    """

    packet: Packet
    residual: Tensor
    finite: Tensor
    sent: Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A flight's result: the sum over ranks, and what this rank contributed to it.

    total: (spec.numel,) the sum of the contributions as decoded, bitwise equal on every rank of the
    group.
    sent: what this rank contributed after loss, computed when asked; `None` from a codec that loses
        nothing: what it was given, in the span's dtype. A route may not know it, and says `None`
        too.
    mask: which entries the total covers, computed when asked: (spec.numel,) bool, equal on every
    rank; `None` for all of them.
    """

    total: Tensor
    sent: Callable[[], Tensor] | None = None
    mask: Callable[[], Tensor] | None = None


Rounds: TypeAlias = Generator[Packet, Tensor, Outcome]


def side_by_side(
    flows: Sequence[Rounds],
    answer: Callable[[dict[int, Packet]], Generator[Any, Any, Mapping[int, Tensor]]],
) -> Generator[Any, Any, list[Outcome]]:
    """Drive several codecs' rounds together, one exchange a round for all of them.

    The packets of a round, {which: packet}, are answered by what `answer` makes of them.

    Returns:
        Their outcomes, in the order given.
    """
    # `None` starts a generator; later rounds send the sums. Codecs with fewer rounds end earlier.
    talking, replies = (
        dict(enumerate(flows)),
        cast(dict[int, Any], dict.fromkeys(range(len(flows)))),
    )
    outcomes: dict[int, Outcome] = {}
    while talking:
        packets: dict[int, Packet] = {}
        for i, flow in list(talking.items()):
            try:
                packets[i] = flow.send(replies[i])
            except StopIteration as stop:
                outcomes[i] = stop.value
                del talking[i]
        if packets:
            replies = dict((yield from answer(packets)))
    return [outcomes[i] for i in range(len(flows))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """A codec's promises; nothing else decides by a codec's class.

    grain: where a route may cut a bucket for it.
    lossy: some input does not survive.
    summable: payloads may be added unopened, as numbers (its packets carry `sums`).
    drops: entries are left out, so encoding a sum again would lose what the ranks chose to send.
    partial: on some entries, the same on every rank, it is exact, and it leaves out the others;
        outcomes carry a `mask`.
    needs_input_later: it may read `x` again after its last answer, so no route may write that
        answer there; `None`: it does where it has no `single_packet_coder`.
    randomised: what it sends depends on the step and the seed.
    unbiased: the mean over seeds of what it sends is `x`.
    row_wise: what arrives of a row (an entry of a parameter's first dimension) depends on no other.
    exact_at_first: its first flight loses nothing.
    needs_base: it compares with values that every rank holds alike: the engine puts the target's
        base into its replicated leaf "base" before each launch.
    cuts: the largest fraction of a value that scales of one byte may cut off.
    divides: of a span it sends what it sends of the runs that the grain cuts it into, so a route
        may encode all of it at once. Its packet's coder is `Sectioned`, decodes alike for every
        sender and context, and keeps no state.
    reads_int8: its `encode_with_residual` takes a residual in 8 bits, and may leave it so.
    """

    grain: Grain = 1
    lossy: bool = True
    summable: bool = False
    drops: bool = False
    partial: bool = False
    needs_input_later: bool | None = None
    randomised: bool = False
    unbiased: bool = False
    row_wise: bool = False
    exact_at_first: bool = False
    needs_base: bool = False
    cuts: float = 0.0
    divides: bool = False
    reads_int8: bool = False


class Codec(Component, ABC):
    """Encode tensors for the wire: a frozen configuration, whose state lives in the engine.

    All tensors are flat. A codec yields packets from `rounds`. One that sends a single packet is a
    `Coder` and gives `encode`, `decode` and `nbytes`.
    """

    kind: ClassVar[str] = "what"
    examples: ClassVar[tuple[str, ...]] = ()
    """Settings that the conformance checks try, as code; the last one also in combinations."""

    @cached_property
    def traits(self) -> Traits:
        """Return what routes, the engine, the checks and the docs may rely on."""
        return Traits()

    @property
    def single_packet_coder(self) -> Coder | None:
        """Return the coder of its one packet a flight; `None` for several packets or parts."""
        return None

    def init(self, spec: Spec, ctx: RankContext) -> State:
        """Make new state for a span."""
        return State()

    def __rshift__(self, other: Codec) -> Codec:
        raise StrategyError(
            f"{self!r} >> {other!r}: the left side must hand on a core (topk, threshold, "
            "randomk), not bytes"
        )

    @abstractmethod
    def nbytes(self, spec: Spec) -> int | None:
        """Return the exact bytes of a flight of this span; `None` where the data decides."""

    def max_nbytes(self, spec: Spec) -> int:
        """Return the most bytes that a flight of this span may have."""
        exact = self.nbytes(spec)
        if exact is None:
            raise TypeError(
                f"{type(self).__name__} has data-sized payloads and must give max_nbytes"
            )
        return exact

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        """Bound |sent - x| of each value, as tightly as the maths does: (spec.numel,) float64.

        Raises:
            TypeError: the codec states none.
        """
        raise TypeError(
            f"no error bound is known for {self!r}: define error_bound on its class, or give "
            "error_bound=, the |sent - x| allowed of each value"
        )

    @abstractmethod
    def rounds(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Rounds:
        """Yield packets of x (spec.numel,), each answered with the sum over ranks of what it
        decodes to; return the outcome.

        `x` stays as it is (a payload may alias it), and what it replaces in `state` before the last
        answer is committed.
        """


def needs_input_later(codec: Codec) -> bool:
    """Return whether a codec may read its input again after its last answer."""
    needs = codec.traits.needs_input_later
    return codec.single_packet_coder is None if needs is None else needs


class Coder(Codec):
    """A codec of one packet a flight: the easy case."""

    @property
    def single_packet_coder(self) -> Coder:
        return self

    @abstractmethod
    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        """Return the payload of `x` (spec.numel,): (nbytes,) uint8, contiguous. `x` stays as it is
        (the payload may alias it)."""

    @abstractmethod
    def decode(
        self, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        """Decode a payload to (spec.numel,) spec.work; the result may alias the payload, which the
        caller hands over.

        Raises:
            PayloadError: the payload's length or content cannot be of this span.
        """

    def fill(
        self, out: Tensor, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> None:
        """Write decode(payload) to `out`.

        The decoded values may lie in the payload; a codec overrides it where it can write to `out`
        at once.
        """
        out.copy_(self.decode(payload, spec, state, ctx, sender))

    def accumulate(
        self,
        total: Tensor,
        payload: Tensor,
        spec: Spec,
        state: State,
        ctx: RankContext,
        sender: int,
    ) -> None:
        """Add decode(payload) to `total`; a codec overrides it where one pass does both."""
        total.add_(self.decode(payload, spec, state, ctx, sender))

    def encode_with_residual(
        self, x: Tensor, residual: Tensor, decay: float, spec: Spec, state: State, ctx: RankContext
    ) -> EncodedWithResidual:
        """Encode `x + decay * residual`; return the packet and the new residual.

        A codec overrides it where one pass does all of it.

        Args:
            x: (spec.numel,) of the bucket's dtype.
            residual: (spec.numel,) of spec.work or bf16, or, where `reads_int8`, bytes of
                `kernels.int8`; the new residual may come in it, too.
            decay: what the old residual is multiplied by.
        """
        # 1. The sum to encode, in the work dtype.
        if residual.dtype == torch.uint8:
            residual = int8.unpack(residual, spec.numel)
        y = fast.summed(x.to(spec.work), residual.to(spec.work), decay)
        packet = encode_packet(self, y, spec, state, ctx)
        # 2. What of it arrives. A route may write into a payload that opens to itself, so copy
        #    that.
        own = packet.payload if self.traits.lossy else packet.payload.clone()
        sent = packet.open(own, ctx.rank)
        # 3. What does not arrive is added to the next input.
        new_residual = y - sent
        return EncodedWithResidual(
            packet, new_residual, fast.all_finite(new_residual), lambda: sent
        )

    def encode_sum(
        self,
        payloads: Sequence[tuple[int, Tensor]],
        spec: Spec,
        state: State,
        ctx: RankContext,
        sum_ctx: RankContext,
    ) -> Tensor:
        """Encode, at the ctx `sum_ctx`, the sum of what the (sender, payload) of `ctx` decode to.

        They are added in order. A codec overrides it where one pass does both.
        """
        (first, payload), *others = payloads
        total = self.decode(payload, spec, state, ctx, first)
        for sender, payload in others:
            self.accumulate(total, payload, spec, state, ctx, sender)
        return self.encode(total, spec, state, sum_ctx)

    def sum_dtype(self, spec: Spec) -> torch.dtype | None:
        """Return the type as whose numbers payloads may be added unopened; `None`: they may not."""
        return None

    def rounds(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Rounds:
        packet = encode_packet(self, x, spec, state, ctx)
        # What may be added unopened is added in place, in the payload itself: copy what was sent.
        own = packet.payload.clone() if self.traits.lossy and packet.sums else packet.payload
        total = yield packet
        return Outcome(total, (lambda: packet.open(own, ctx.rank)) if self.traits.lossy else None)


class Sectioned(Coder):
    """A coder whose payload has sections, such as scales and codes, for a codec that `divides`.

    Each section of a span's payload is its runs' sections of that kind, one behind the other.
    """

    @abstractmethod
    def sections(self, spec: Spec) -> tuple[int, ...]:
        """Return the bytes of each section."""

    def nbytes(self, spec: Spec) -> int:
        return sum(self.sections(spec))


def encode_packet(coder: Coder, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Packet:
    """Encode `x` and return the one packet of the flight."""
    return Packet.of(coder.encode(x, spec, state, ctx), coder, spec, state, ctx)


def check_nbytes(coder: Coder, payload: Tensor, nbytes: int) -> None:
    """Raise PayloadError unless a payload has the length that it must have."""
    if payload.numel() != nbytes:
        raise PayloadError(
            f"{coder!r}: a payload of {payload.numel()} bytes where {nbytes} were due; it was "
            "cut or is of another span"
        )
