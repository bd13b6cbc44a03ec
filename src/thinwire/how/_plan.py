"""Moving spans about by a plan: who sends which sums to whom, in which order, as seen from one
rank.

The bucket is cut in spans ("chunks"), each encoded on its own. A chunk's *parts* travel towards its
owner and are added on the way; then its *whole*, the sum, travels from the owner to all. Where
payloads add unopened, parts are added as numbers and the whole is the sum itself. Where they do
not, a rank opens what it hears, adds, and encodes again; the owner encodes the whole, once, and all
ranks (the owner too) open those same bytes. Sums are taken in the order of places, never of
arrival.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from thinwire.core import (
    Codec,
    Coder,
    Flight,
    Grain,
    Link,
    Outcome,
    Packet,
    RankContext,
    Route,
    Spec,
    State,
)
from thinwire.how._talk import Due, Totals, many_spans, places, swap_runs
from thinwire.kernels import reference

Chunks = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Message:
    """What goes to, or comes from, one place: parts of some chunks, and the whole of some.

    raw: of the parts, those that hold one rank's packet as it was first encoded.
    """

    peer: int
    parts: Chunks = ()
    wholes: Chunks = ()
    raw: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Move:
    """One exchange of one rank."""

    send: tuple[Message, ...] = ()
    recv: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Again:
    """Who encodes a whole, other than its parts' own coder: `encode` does at its owner, `single_packet_coder`
    tells of who opens it."""

    encode: Callable[[Tensor, int], Tensor]
    opener: Callable[[int], tuple[Coder, Spec, State]]


def totals(
    moves: Sequence[Move],
    owners: Sequence[int],
    packets: dict[int, Packet],
    ctx: RankContext,
    unopened: bool,
    again: Again | None,
    into: dict[int, Tensor],
) -> Totals:
    """One packet of each chunk, answered with the sum over ranks of what they decode to, in its
    place in `into` if it has one."""
    if ctx.world == 1 and again is None:
        return {j: packet.open(packet.payload, ctx.rank) for j, packet in packets.items()}
    chunks: dict[int, _Unopened | _Opened] = {
        j: _Unopened(packet, ctx)
        if unopened and again is None
        else _Opened(packet, ctx, j, owners[j], again)
        for j, packet in packets.items()
    }
    device = next(iter(packets.values())).payload.device
    for move in moves:
        send, recv = [], []
        for message in move.send:
            parts, wholes = _among(message, chunks)
            payloads = [*(chunks[j].part() for j in parts), *(chunks[j].whole() for j in wholes)]
            knowns = [
                *(chunks[j].due.nbytes is not None for j in parts),
                *(chunks[j].whole_due.nbytes is not None for j in wholes),
            ]
            if payloads:
                send.append((ctx.group[message.peer], payloads, knowns))
        for message in move.recv:
            parts, wholes = _among(message, chunks)
            due = [*(chunks[j].due for j in parts), *(chunks[j].whole_due for j in wholes)]
            if due:
                recv.append((ctx.group[message.peer], due))
        got = yield from swap_runs(send, recv, device)
        for message in move.recv:
            parts, wholes = _among(message, chunks)
            runs = iter(got.get(ctx.group[message.peer], ()))
            for j in parts:
                chunks[j].hear(message.peer, next(runs), j in message.raw)
            for j in wholes:
                chunks[j].take(next(runs))
    return {j: chunk.open(into.get(j)) for j, chunk in chunks.items()}


def _among(message: Message, chunks: dict[int, _Unopened | _Opened]) -> tuple[list[int], list[int]]:
    """Of what a message holds, the chunks that still talk."""
    return [j for j in message.parts if j in chunks], [j for j in message.wholes if j in chunks]


class _Unopened:
    """A chunk whose payloads add as numbers."""

    def __init__(self, packet: Packet, ctx: RankContext) -> None:
        self.packet = packet
        self.due = self.whole_due = Due(
            packet.payload.numel(), packet.payload.numel(), packet.coder
        )  # what adds is as long everywhere
        self.heard = [(ctx.group_rank, packet.payload)]

    def hear(self, place: int, payload: Tensor, raw: bool) -> None:
        self.heard.append((place, payload))

    def part(self) -> Tensor:
        return self.whole()

    def whole(self) -> Tensor:
        if len(self.heard) > 1:
            me = self.heard[0][0]
            ordered = sorted(self.heard, key=lambda each: each[0])
            self.heard = [(me, added([payload for _, payload in ordered], self.packet.sums))]
        return self.heard[0][1]

    def take(self, payload: Tensor) -> None:
        self.heard = [(self.heard[0][0], payload)]

    def open(self, into: Tensor | None) -> Tensor:
        packet = self.packet
        return _opened(
            packet.coder,
            self.whole(),
            packet.spec,
            packet.state,
            packet.ctx,
            packet.ctx.rank,
            into,
        )


class _Opened:
    """A chunk whose payloads are opened, added and encoded again."""

    def __init__(
        self, packet: Packet, ctx: RankContext, number: int, owner: int, again: Again | None
    ) -> None:
        self.packet, self.ctx, self.number, self.again = packet, ctx, number, again
        self.owner = ctx.group[owner]
        self.opener = again.opener(number) if again else (packet.coder, packet.spec, packet.state)
        self.due = Due.of(packet.coder, packet.spec)
        self.whole_due = Due.of(self.opener[0], self.opener[1])
        self.heard: list[tuple[int, Tensor, bool]] = [(ctx.group_rank, packet.payload, True)]
        self.total: Tensor | None = None
        self.final: Tensor | None = None

    def hear(self, place: int, payload: Tensor, raw: bool) -> None:
        self.heard.append((place, payload, raw))

    def part(self) -> Tensor:
        if self.total is None and len(self.heard) == 1:
            return self.packet.payload
        packet = self.packet
        return packet.coder.encode(self._add_up(), packet.spec, packet.state, self._hop())

    def whole(self) -> Tensor:
        if self.final is None:
            packet, back = self.packet, self.ctx.child("back")
            if self.again is not None:
                self.final = self.again.encode(self._add_up(), self.number)
            elif self.total is None and all(raw for *_, raw in self.heard):
                ordered = sorted(self.heard, key=lambda each: each[0])
                heard = [(self.ctx.group[place], payload) for place, payload, _ in ordered]
                self.final = packet.coder.encode_sum(
                    heard, packet.spec, packet.state, packet.ctx, back
                )
            else:
                self.final = packet.coder.encode(self._add_up(), packet.spec, packet.state, back)
        return self.final

    def take(self, payload: Tensor) -> None:
        self.final = payload

    def open(self, into: Tensor | None) -> Tensor:
        coder, spec, state = self.opener
        return _opened(coder, self.whole(), spec, state, self.ctx.child("back"), self.owner, into)

    def _add_up(self) -> Tensor:
        """The sum of what was heard since, in the order of places, onto what was added before."""
        packet = self.packet
        for place, payload, raw in sorted(self.heard, key=lambda each: each[0]):
            sender = self.ctx.group[place]
            said = packet.ctx if raw else self._hop()
            if self.total is None:
                self.total = packet.coder.decode(payload, packet.spec, packet.state, said, sender)
            else:
                packet.coder.accumulate(
                    self.total, payload, packet.spec, packet.state, said, sender
                )
        self.heard = []
        assert self.total is not None
        return self.total

    def _hop(self) -> RankContext:
        """Who encodes a sum on its way. A rank does it once for a chunk, and ranks may count their
        moves otherwise."""
        return self.ctx.child("hop")


def _opened(
    coder: Coder,
    payload: Tensor,
    spec: Spec,
    state: State,
    ctx: RankContext,
    sender: int,
    into: Tensor | None,
) -> Tensor:
    """What a payload decodes to, in its place where there is one for it."""
    if into is None or into.numel() != spec.numel or into.dtype != spec.work:
        return coder.decode(payload, spec, state, ctx, sender)
    coder.fill(into, payload, spec, state, ctx, sender)
    return into


def added(payloads: Sequence[Tensor], sums: tuple[tuple[int, torch.dtype], ...]) -> Tensor:
    """The sum of payloads that add unopened, in order; in place in the first where it can be.
    Narrow floats are rounded once.

    Example:
        >>> halves = [torch.tensor(v, dtype=torch.bfloat16).view(1).view(torch.uint8) for v in (256.0, 1.0, 1.0)]
        >>> added(halves, ((2, torch.bfloat16),)).view(torch.bfloat16)
        tensor([258.], dtype=torch.bfloat16)
    """
    runs, at = [], 0
    for nbytes, dtype in sums:
        first, *others = [
            reference.from_bytes(payload[at : at + nbytes], dtype) for payload in payloads
        ]
        total = (
            first.float() if dtype.itemsize < torch.float32.itemsize and len(others) > 1 else first
        )
        for other in others:
            total.add_(other)
        runs.append(reference.as_bytes(total.to(dtype)))
        at += nbytes
    return runs[0] if len(runs) == 1 else torch.cat(runs) if runs else payloads[0]


class Planned(Route):
    """A route that moves chunks by a plan. It says how many there are, who owns each, and how they
    move."""

    carries_mask: ClassVar[bool] = True
    unopened: ClassVar[bool] = True
    """Payloads that add are added unopened."""

    @abstractmethod
    def chunks(self, world: int) -> int:
        """How many spans the bucket is cut in."""

    @abstractmethod
    def owner(self, chunk: int, world: int) -> int:
        """The place where the sum of a chunk is whole first."""

    @abstractmethod
    def moves(self, place: int, world: int) -> tuple[Move, ...]:
        """The exchanges of one place, in order."""

    def moves_of(self, codec: Codec, spec: Spec, ctx: RankContext) -> tuple[Move, ...]:
        """The exchanges of one flight, where they hang on how much it carries."""
        return self.moves(ctx.group_rank, ctx.world)

    def refuses(self, codec: Codec) -> str | None:
        if codec.traits.drops and not codec.traits.summable:
            return (
                f"Cannot carry {codec!r} over {self!r}: encoding a sum again on its way would "
                "drop entries that the ranks chose to send. "
                "Use gather(), or two_shot(back=…) with a codec with feedback, such as "
                "two_shot(back=feedback(topk(…)))"
            )
        return None

    def init(self, codec: Codec, spec: Spec, ctx: RankContext) -> State:
        spans = self.spans(codec, spec, ctx.world)
        return State(
            children={
                "codec": State(
                    children={str(j): codec.init(span, ctx) for j, span in enumerate(spans)}
                )
            }
        )

    def carry(
        self, codec: Codec, x: Tensor, spec: Spec, state: State, ctx: RankContext
    ) -> Flight[Outcome]:
        spans = self.spans(codec, spec, ctx.world)
        moves = self.moves_of(codec, spec, ctx)
        owners = [self.owner(j, ctx.world) for j in range(len(spans))]

        def answer(packets: dict[int, Packet]) -> Totals:
            again = self._again(spans, state, packets, ctx)
            return totals(
                moves,
                owners,
                packets,
                ctx,
                self.unopened and codec.traits.summable,
                again,
                places(codec, x, spans),
            )

        return (yield from many_spans(codec, x, spans, state.child("codec"), ctx, answer))

    def spans(self, codec: Codec, spec: Spec, world: int) -> tuple[Spec, ...]:
        """The spans of a bucket, one a chunk."""
        return spec.cut(self.chunks(world), self._grain(codec))

    def _grain(self, codec: Codec) -> Grain:
        return codec.traits.grain

    def _again(
        self, spans: Sequence[Spec], state: State, packets: dict[int, Packet], ctx: RankContext
    ) -> Again | None:
        """Who encodes sums, where it is not the codec of the parts."""
        return None

    @abstractmethod
    def seconds(self, codec: Codec, spec: Spec, ctx: RankContext, link: Link) -> float: ...


class OneCodec(Planned):
    """A planned route whose sums are encoded as their parts are, so that a chunk has one size."""

    def _sizes(self, codec: Codec, spec: Spec, world: int) -> list[int | None]:
        """Bytes of a part of each chunk."""
        return [codec.nbytes(span) for span in self.spans(codec, spec, world)]

    def _most(self, codec: Codec, spec: Spec, world: int) -> int:
        """Bytes of the largest part of a chunk, for formulas of seconds, which take all chunks to
        be alike."""
        return max(largest(codec, span) for span in self.spans(codec, spec, world))

    def sent_nbytes(self, codec: Codec, spec: Spec, ctx: RankContext) -> float | None:
        sizes = self._sizes(codec, spec, ctx.world)
        return (
            None
            if None in sizes
            else self._sent([size or 0 for size in sizes], ctx.group_rank, ctx.world)[0]
        )

    def sent_messages(self, codec: Codec, spec: Spec, ctx: RankContext) -> float | None:
        sizes = self._sizes(codec, spec, ctx.world)
        return (
            None
            if None in sizes or codec.single_packet_coder is None
            else self._sent([size or 0 for size in sizes], ctx.group_rank, ctx.world)[1]
        )

    @abstractmethod
    def _sent(self, sizes: Sequence[int], place: int, world: int) -> tuple[float, float]:
        """Bytes and messages out of one place, in closed form, from the bytes of each chunk."""


def largest(codec: Codec, spec: Spec) -> int:
    """Bytes of a flight of this span, at the most where the data decides."""
    exact = codec.nbytes(spec)
    return codec.max_nbytes(spec) if exact is None else exact


def ring(
    order: Sequence[int], index: int, blocks: Sequence[Chunks], *, raw: bool
) -> tuple[list[Move], list[Move]]:
    """The moves of the place `order[index]`: reduce-scatter round a ring, after which it has all of
    block `index`, and all-gather.

    raw: what it starts from is as ranks first encoded it.
    """
    n = len(order)
    after, before = order[(index + 1) % n], order[index - 1]
    scatter = [
        Move(
            (Message(after, parts=blocks[(index - 1 - s) % n]),),
            (
                Message(
                    before,
                    parts=blocks[(index - 2 - s) % n],
                    raw=frozenset(blocks[(index - 2 - s) % n] if raw and not s else ()),
                ),
            ),
        )
        for s in range(n - 1)
    ]
    gather = [
        Move(
            (Message(after, wholes=blocks[(index - s) % n]),),
            (Message(before, wholes=blocks[(index - 1 - s) % n]),),
        )
        for s in range(n - 1)
    ]
    return scatter, gather
