"""Spans that go straight to their owners, and their sums straight back: what `two_shot`, `direct`
and `server` have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self, cast

from torch import Tensor

from thinwire.core import Codec, Coder, Grain, Link, Packet, RankContext, Spec, State
from thinwire.errors import StrategyError
from thinwire.how._plan import Again, Message, Move, Planned, largest

SLOT_BYTES = 1 << 20
"""Messages of this size and above go in slots, where nobody has measured the link."""
_ROUND_TRIP = 1 / 8
"""The most that a slot's round trip may take beside its message; what messages that meet would cost
is more (docs/wire.md)."""


class Star(Planned):
    """Each span has an owner, all ranks by default. A rank's messages start at itself and go round,
    so that no two meet at one owner.

    Where fewer ranks own, each starts at an owner of its own; where more than half own, in slots.
    Where all own, in slots if messages are
    large: a rank that were ahead would send to an owner that still hears another, both would be
    slow, and ranks drift further apart.
    """

    slot_bytes: int | None = SLOT_BYTES
    """Messages of so many bytes and more go in slots; `None`: as the link asks, where it is
    measured."""

    def __post_init__(self) -> None:
        if self.slot_bytes is not None and self.slot_bytes < 0:
            raise StrategyError(
                f"{self!r}: slot_bytes is the size of the smallest message with a slot, at least 0"
            )

    @property
    def needs_link(self) -> bool:
        return self.slot_bytes is None

    def bind(self, world: int, link: Link | None = None) -> Self:
        bound = super().bind(world, link)
        if not self.needs_link or link is None:
            return bound
        slow = round(
            link.delay_s * link.rate_bytes_per_s / _ROUND_TRIP
        )  # a smaller message waits longer than it would lose
        return cast(Self, replace(cast(Any, bound), slot_bytes=max(SLOT_BYTES, slow)))

    @property
    def back(self) -> Codec | None:
        """The codec of the sums; `None` for the coder that opens the codec's own packets, or for
        none where payloads add unopened."""
        return None

    def owners(self, world: int) -> Sequence[int]:
        """The places that own a span each, in the spans' order."""
        return range(world)

    def chunks(self, world: int) -> int:
        return len(self.owners(world))

    def owner(self, chunk: int, world: int) -> int:
        return self.owners(world)[chunk]

    def moves(self, place: int, world: int) -> tuple[Move, ...]:
        if world == 1:
            return ()
        owned = {owner: j for j, owner in enumerate(self.owners(world))}
        away = _away(place, world, owned)
        mine, others = owned.get(place), [(place + k) % world for k in range(1, world)]
        if self._crowded(world):
            return _slots(place, world, owned)
        there = tuple(Message(owner, parts=(owned[owner],)) for owner in away)
        heard = (
            tuple(Message(peer, parts=(mine,), raw=frozenset((mine,))) for peer in reversed(others))
            if mine is not None
            else ()
        )
        back = tuple(Message(peer, wholes=(mine,)) for peer in others) if mine is not None else ()
        return (
            Move(there, heard),
            Move(back, tuple(Message(owner, wholes=(owned[owner],)) for owner in reversed(away))),
        )

    def moves_of(self, codec: Codec, spec: Spec, ctx: RankContext) -> tuple[Move, ...]:
        if not self._slotted(codec, spec, ctx.world):
            return self.moves(ctx.group_rank, ctx.world)
        return _slots(
            ctx.group_rank, ctx.world, {owner: j for j, owner in enumerate(self.owners(ctx.world))}
        )

    def _crowded(self, world: int) -> bool:
        """Whether each message waits for its slot because more than half of the ranks own, and not
        all."""
        return 1 < len(self.owners(world)) < world < 2 * len(self.owners(world))

    def _slotted(self, codec: Codec, spec: Spec, world: int) -> bool:
        """Whether each message waits for its slot, though all ranks own."""
        if len(self.owners(world)) < world or world < 3:
            return False
        return max(self._largest(codec, spec, world)) >= (
            SLOT_BYTES if self.slot_bytes is None else max(self.slot_bytes, 1)
        )

    def _largest(self, codec: Codec, spec: Spec, world: int) -> tuple[int, int]:
        """Bytes of the largest part, and of the largest sum."""
        spans = self.spans(codec, spec, world)
        return max(largest(codec, span) for span in spans), max(
            largest(self.back or codec, span) for span in spans
        )

    def refuses_back(self, codec: Codec) -> str | None:
        if self.back is not None and (
            codec.single_packet_coder is None or self.back.single_packet_coder is None
        ):
            odd = codec if codec.single_packet_coder is None else self.back
            name = type(self).__name__
            return (
                f"Cannot use {name}(back={self.back!r}) with {codec!r}: {odd!r} speaks in several "
                "rounds or parts. "
                "Use back=None or gather()"
            )
        return None

    def init(self, codec: Codec, spec: Spec, ctx: RankContext) -> State:
        state = super().init(codec, spec, ctx)
        owners = list(self.owners(ctx.world))
        if self.back is not None and ctx.group_rank in owners:
            own = self.back.init(
                self.spans(codec, spec, ctx.world)[owners.index(ctx.group_rank)], ctx
            )
            for _, leaf in own.walk():
                leaf.kind = "sharded" if leaf.kind == "summed" else leaf.kind
            state.children["back"] = own
        return state

    def _again(
        self, spans: Sequence[Spec], state: State, packets: dict[int, Packet], ctx: RankContext
    ) -> Again | None:
        if self.back is None:
            return None
        back, opener = self.back, self.back.single_packet_coder
        assert opener is not None

        def encode(total: Tensor, j: int) -> Tensor:
            return next(
                back.rounds(total, spans[j], state.child("back"), ctx.child("back"))
            ).payload  # its residual is bound by then

        def opens(j: int) -> tuple[Coder, Spec, State]:
            return opener, spans[j], opener.init(spans[j], packets[j].ctx)

        return Again(encode, opens)

    def _grain(self, codec: Codec) -> Grain:
        """The coarser of the two codecs' grains."""
        grains = [codec.traits.grain, self.back.traits.grain if self.back else 1]
        words: tuple[Grain, ...] = ("bucket", "part")
        for word in words:
            if word in grains:
                return word
        return math.lcm(*(grain for grain in grains if isinstance(grain, int)))

    def sent_nbytes(self, codec: Codec, spec: Spec, ctx: RankContext) -> float | None:
        sizes = self._both(codec, spec, ctx)
        return None if sizes is None else sum(sizes[0]) + (ctx.world - 1) * sizes[1]

    def sent_messages(self, codec: Codec, spec: Spec, ctx: RankContext) -> float | None:
        sizes = self._both(codec, spec, ctx)
        if sizes is None or codec.single_packet_coder is None:
            return None
        return sum(size > 0 for size in sizes[0]) + (ctx.world - 1) * (sizes[1] > 0)

    def _both(self, codec: Codec, spec: Spec, ctx: RankContext) -> tuple[list[int], int] | None:
        """Bytes of each span that goes to another owner, and of the sum that comes back from
        here."""
        owners, spans = self.owners(ctx.world), self.spans(codec, spec, ctx.world)
        there = [
            codec.nbytes(span)
            for owner, span in zip(owners, spans, strict=True)
            if owner != ctx.group_rank
        ]
        back = [
            (self.back or codec).nbytes(span)
            for owner, span in zip(owners, spans, strict=True)
            if owner == ctx.group_rank
        ]
        if None in there or None in back:
            return None
        return [size or 0 for size in there], back[0] or 0 if back else 0

    def seconds(self, codec: Codec, spec: Spec, ctx: RankContext, link: Link) -> float:
        world, spans = ctx.world, self.spans(codec, spec, ctx.world)
        s, b = self._largest(codec, spec, world)
        if world == 1:
            return 0.0
        if self._slotted(codec, spec, world) or self._crowded(world):
            return (world - 1) * (link.seconds(s) + link.seconds(b))
        if len(spans) == world:
            return link.seconds(*[s] * (world - 1)) + link.seconds(*[b] * (world - 1))
        # the wires of owners are the narrow place; workers that meet there on the way (where owners
        # do not divide the world) do not count
        out, into = (world - 1) * s / link.rate_bytes_per_s, (world - 1) * b / link.rate_bytes_per_s
        there = (
            link.delay_s
            + max(link.message_s + out, len(spans) * (link.message_s + s / link.rate_bytes_per_s))
            if s
            else 0.0
        )
        # by the time that the sums are there, all have long said that they are ready
        return there + (link.latency_s + (world - 1) * link.message_s + into if b else 0.0)


def _slots(place: int, world: int, owned: dict[int, int]) -> tuple[Move, ...]:
    """Slot k: to the k-th place on, from the k-th before; each place waits for its slot, or
    messages would meet at the owners."""
    mine, moves = owned.get(place), []
    for k in range(1, world):
        to, source = (place + k) % world, (place - k) % world
        send = (Message(to, parts=(owned[to],)),) if to in owned else ()
        recv = (Message(source, parts=(mine,), raw=frozenset((mine,))),) if mine is not None else ()
        moves.append(Move(send, recv))
    for k in range(1, world):
        to, source = (place + k) % world, (place - k) % world
        send = (Message(to, wholes=(mine,)),) if mine is not None else ()
        moves.append(
            Move(send, (Message(source, wholes=(owned[source],)),) if source in owned else ())
        )
    return tuple(move for move in moves if move.send or move.recv)


def _away(place: int, world: int, owned: dict[int, int]) -> list[int]:
    """The owners other than `place`, in the order of a phased exchange: those after it first; where
    few own, each has its own first."""
    if len(owned) == world:
        return [(place + k) % world for k in range(1, world)]
    ordered = list(owned)
    turn = place % len(ordered)
    return [owner for owner in ordered[turn:] + ordered[:turn] if owner != place]
