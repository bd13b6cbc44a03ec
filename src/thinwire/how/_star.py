"""Send spans straight to their owners, and sums straight back.

The base of `two_shot`, `direct` and `server`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self, cast

from torch import Tensor

from thinwire.core import Codec, Coder, Grain, Link, Packet, RankContext, Spec, State
from thinwire.errors import StrategyError
from thinwire.how._moves import Message, Move
from thinwire.how._plan import Planned, largest
from thinwire.how._sums import SumCoder

SLOT_BYTES = 1 << 20
"""Messages of this size and above go in slots, where nobody has measured the link."""
_ROUND_TRIP = 1 / 8
"""The most that a slot's round trip may take beside its message; what messages that meet would cost
is more (docs/wire.md)."""


class Star(Planned):
    """A plan in which each span has an owner; by default every rank owns one.

    A rank sends to the ranks after it in turn, so that no two messages meet at one owner. Where
    fewer ranks own, each starts at another owner. Where more than half own, messages go in slots.
    Where all own, they go in slots if they are large: a rank that is ahead would send to an owner
    that still receives another message, both would be slow, and ranks would drift further apart.
    """

    slot_bytes: int | None = SLOT_BYTES
    """Messages of so many bytes and more go in slots; `None`: by the measured link."""

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
        # A smaller message would wait for its slot longer than it would lose by meeting another.
        slow = round(link.delay_s * link.rate_bytes_per_s / _ROUND_TRIP)
        return cast(Self, replace(cast(Any, bound), slot_bytes=max(SLOT_BYTES, slow)))

    def owners(self, world: int) -> Sequence[int]:
        """Return the ranks of the group that own a span each, in the spans' order."""
        return range(world)

    def chunks(self, world: int) -> int:
        return len(self.owners(world))

    def owner(self, chunk: int, world: int) -> int:
        return self.owners(world)[chunk]

    def moves(self, group_rank: int, world: int) -> tuple[Move, ...]:
        if world == 1:
            return ()
        # Two moves: parts to their owners, then sums from the owners to all. Both sides of an
        # exchange go round the group in opposite senses, so that no rank is everybody's first
        # receiver.
        owned = {owner: j for j, owner in enumerate(self.owners(world))}
        away = _away(group_rank, world, owned)
        mine, others = owned.get(group_rank), [(group_rank + k) % world for k in range(1, world)]
        if self._crowded(world):
            return _slots(group_rank, world, owned)
        there = tuple(Message(owner, parts=(owned[owner],)) for owner in away)
        received = (
            tuple(Message(peer, parts=(mine,), raw=frozenset((mine,))) for peer in reversed(others))
            if mine is not None
            else ()
        )
        back = tuple(Message(peer, wholes=(mine,)) for peer in others) if mine is not None else ()
        return (
            Move(there, received),
            Move(back, tuple(Message(owner, wholes=(owned[owner],)) for owner in reversed(away))),
        )

    def moves_of(self, codec: Codec, spec: Spec, ctx: RankContext) -> tuple[Move, ...]:
        if not self._slotted(codec, spec, ctx.world):
            return self.moves(ctx.group_rank, ctx.world)
        return _slots(
            ctx.group_rank, ctx.world, {owner: j for j, owner in enumerate(self.owners(ctx.world))}
        )

    def _crowded(self, world: int) -> bool:
        """Return whether messages go in slots because more than half of the ranks own, and not
        all."""
        return 1 < len(self.owners(world)) < world < 2 * len(self.owners(world))

    def _slotted(self, codec: Codec, spec: Spec, world: int) -> bool:
        """Return whether messages go in slots, though all ranks own."""
        if len(self.owners(world)) < world or world < 3:
            return False
        return max(self._largest(codec, spec, world)) >= (
            SLOT_BYTES if self.slot_bytes is None else max(self.slot_bytes, 1)
        )

    def _largest(self, codec: Codec, spec: Spec, world: int) -> tuple[int, int]:
        """Return the bytes of the largest part, and of the largest sum."""
        spans = self.spans(codec, spec, world)
        return max(largest(codec, span) for span in spans), max(
            largest(self.back or codec, span) for span in spans
        )

    def refuses_back(self, codec: Codec) -> str | None:
        if self.back is not None and (
            codec.single_packet_coder is None or self.back.single_packet_coder is None
        ):
            refused = codec if codec.single_packet_coder is None else self.back
            name = type(self).__name__
            return (
                f"Cannot use {name}(back={self.back!r}) with {codec!r}: {refused!r} sends in "
                "several "
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
            # A residual of a sum exists once, at the owner: saved as *sharded*, not added up over
            # ranks.
            for _, leaf in own.walk():
                leaf.kind = "sharded" if leaf.kind == "summed" else leaf.kind
            state.children["back"] = own
        return state

    def _sum_coder(
        self, spans: Mapping[int, Spec], state: State, packets: dict[int, Packet], ctx: RankContext
    ) -> SumCoder | None:
        if self.back is None:
            return None
        back, coder = self.back, self.back.single_packet_coder
        assert coder is not None

        def encode(total: Tensor, j: int) -> Tensor:
            # One packet is all that it sends, and its residual is committed before it yields that.
            return next(
                back.rounds(total, spans[j], state.child("back"), ctx.child("back"))
            ).payload

        def coder_of(j: int) -> tuple[Coder, Spec, State]:
            return coder, spans[j], coder.init(spans[j], packets[j].ctx)

        return SumCoder(encode, coder_of)

    def _grain(self, codec: Codec) -> Grain:
        """Return a grain that suits both codecs."""
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
        """Return the bytes of each span that goes to another owner, and of the sum of the own
        span."""
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
        # s, b: bytes of the largest part, and of the largest sum.
        s, b = self._largest(codec, spec, world)
        if world == 1:
            return 0.0
        # a. In slots: one message at a time, each with its own latency.
        if self._slotted(codec, spec, world) or self._crowded(world):
            return (world - 1) * (link.seconds(s) + link.seconds(b))
        # b. All ranks own: each sends its messages one behind the other.
        if len(spans) == world:
            return link.seconds(*[s] * (world - 1)) + link.seconds(*[b] * (world - 1))
        # c. Few own: their links limit it. That workers meet there, where owners do not divide the
        #    world, is left out.
        out, into = (world - 1) * s / link.rate_bytes_per_s, (world - 1) * b / link.rate_bytes_per_s
        there = (
            link.delay_s
            + max(link.message_s + out, len(spans) * (link.message_s + s / link.rate_bytes_per_s))
            if s
            else 0.0
        )
        # When the sums come, all receivers have long been ready: no round trip.
        return there + (link.latency_s + (world - 1) * link.message_s + into if b else 0.0)


def _slots(group_rank: int, world: int, owned: dict[int, int]) -> tuple[Move, ...]:
    """Return moves in slots: in slot k to the k-th rank on, from the k-th before.

    Each rank waits for its slot, or messages would meet at the owners.
    """
    mine, moves = owned.get(group_rank), []
    # 1. Parts to the owners, a slot each.
    for k in range(1, world):
        to, source = (group_rank + k) % world, (group_rank - k) % world
        send = (Message(to, parts=(owned[to],)),) if to in owned else ()
        recv = (Message(source, parts=(mine,), raw=frozenset((mine,))),) if mine is not None else ()
        moves.append(Move(send, recv))
    # 2. Sums back, in the same slots.
    for k in range(1, world):
        to, source = (group_rank + k) % world, (group_rank - k) % world
        send = (Message(to, wholes=(mine,)),) if mine is not None else ()
        moves.append(
            Move(send, (Message(source, wholes=(owned[source],)),) if source in owned else ())
        )
    return tuple(move for move in moves if move.send or move.recv)


def _away(group_rank: int, world: int, owned: dict[int, int]) -> list[int]:
    """Return the other owners in the order in which a rank sends to them.

    Those after it come first; where few own, each rank starts at another.
    """
    if len(owned) == world:
        return [(group_rank + k) % world for k in range(1, world)]
    ordered = list(owned)
    turn = group_rank % len(ordered)
    return [owner for owner in ordered[turn:] + ordered[:turn] if owner != group_rank]
