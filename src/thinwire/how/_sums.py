"""Add up the spans of a bucket while they move from rank to rank.

A span ("chunk") is encoded on its own. Its *parts* travel towards its owner and are added on the
way. Then its *whole*, the sum, travels from the owner to all. Where payloads add unopened, parts
are added as numbers and the whole is the sum itself. Where they do not, a rank decodes what it
receives, adds, and encodes again; the owner encodes the whole once, and all ranks (the owner too)
decode those same bytes. Sums are taken in the order of ranks in the group, never of arrival.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thinwire.core import Coder, Packet, RankContext, Spec, State
from thinwire.how._moves import Message, Move
from thinwire.how._rounds import Expected, Totals, opened, swap_runs
from thinwire.kernels import reference

_FEW, _SMALL_BYTES = 8, 1 << 14


@dataclass(frozen=True, slots=True)
class SumCoder:
    """A coder of sums, where it is another one than that of their parts.

    encode: (sum, chunk) to the payload, at its owner. coder_of: the coder, spec and state that
    decode a chunk's payload, at every rank.
    """

    encode: Callable[[Tensor, int], Tensor]
    coder_of: Callable[[int], tuple[Coder, Spec, State]]


def totals(
    moves: Sequence[Move],
    owners: Sequence[int],
    packets: dict[int, Packet],
    ctx: RankContext,
    unopened: bool,
    sum_coder: SumCoder | None,
    into: dict[int, Tensor],
) -> Totals:
    """Send one packet of each chunk by a plan; return the sums over ranks of what they decode to.

    Args:
        moves: this rank's exchanges, in order.
        owners: of each chunk, the rank of the group where its sum is whole first.
        packets: by chunk.
        ctx: this rank.
        unopened: payloads are added as they are.
        sum_coder: encodes the sums, where it is not the coder of the parts.
        into: by chunk, a tensor that its sum may be written into.
    """
    # 1. Each chunk holds this rank's own packet to begin with.
    if ctx.world == 1 and sum_coder is None:
        return {j: packet.open(packet.payload, ctx.rank) for j, packet in packets.items()}
    group_rank = ctx.group_rank
    chunks: dict[int, Unopened | Opened] = {
        j: Unopened(packet, group_rank)
        if unopened and sum_coder is None
        else Opened(packet, ctx, group_rank, j, owners[j], sum_coder)
        for j, packet in packets.items()
    }
    device = next(iter(packets.values())).payload.device

    # 2. Exchange by exchange: send what the chunks hold, take in what comes.
    for move in moves:
        # a. Encode what this rank sends: what it has of a chunk so far, or the whole sum.
        send, recv = [], []
        for message in move.send:
            parts, wholes = _in_flight(message, chunks)
            payloads = [*(chunks[j].part() for j in parts), *(chunks[j].whole() for j in wholes)]
            sizes_known = [
                *(chunks[j].expected.nbytes is not None for j in parts),
                *(chunks[j].expected_whole.nbytes is not None for j in wholes),
            ]
            if payloads:
                send.append((ctx.group[message.peer], payloads, sizes_known))
        # b. What comes, in the sender's order.
        for message in move.recv:
            parts, wholes = _in_flight(message, chunks)
            expected = [
                *(chunks[j].expected for j in parts),
                *(chunks[j].expected_whole for j in wholes),
            ]
            if expected:
                recv.append((ctx.group[message.peer], expected))
        # c. Exchange; then take in what has come, to be added when the chunk is sent or opened.
        got = yield from swap_runs(send, recv, device)
        for message in move.recv:
            parts, wholes = _in_flight(message, chunks)
            runs = iter(got.get(ctx.group[message.peer], ()))
            for j in parts:
                chunks[j].receive_part(message.peer, next(runs), j in message.raw)
            for j in wholes:
                chunks[j].receive_whole(next(runs))

    # 3. Every rank decodes the same bytes of each sum.
    return {j: chunk.open(into.get(j)) for j, chunk in chunks.items()}


def _in_flight(
    message: Message, chunks: dict[int, Unopened | Opened]
) -> tuple[list[int], list[int]]:
    """Return the parts and wholes of a message whose chunks still have a packet in this round."""
    return [j for j in message.parts if j in chunks], [j for j in message.wholes if j in chunks]


class Unopened:
    """A chunk whose payloads are added as numbers."""

    def __init__(self, packet: Packet, group_rank: int) -> None:
        self.packet = packet
        # Payloads that add have one length on every rank.
        self.expected = self.expected_whole = Expected(
            packet.payload.numel(), packet.payload.numel(), packet.coder
        )
        self.received = [(group_rank, packet.payload)]

    def receive_part(self, group_rank: int, payload: Tensor, raw: bool) -> None:
        self.received.append((group_rank, payload))

    def receive_parts(
        self, group_ranks: Sequence[int], payloads: Sequence[Tensor], raw: Sequence[bool]
    ) -> None:
        self.received.extend(zip(group_ranks, payloads, strict=True))

    def part(self) -> Tensor:
        return self.whole()

    def whole(self) -> Tensor:
        # Add in the order of ranks, never of arrival: float sums depend on the order.
        if len(self.received) > 1:
            own_rank = self.received[0][0]
            ordered = sorted(self.received, key=lambda each: each[0])
            self.received = [
                (own_rank, added([payload for _, payload in ordered], self.packet.sums))
            ]
        return self.received[0][1]

    def receive_whole(self, payload: Tensor) -> None:
        self.received = [(self.received[0][0], payload)]

    def open(self, into: Tensor | None) -> Tensor:
        packet = self.packet
        return opened(
            packet.coder,
            self.whole(),
            packet.spec,
            packet.state,
            packet.ctx,
            packet.ctx.rank,
            into,
        )


class Opened:
    """A chunk whose payloads are decoded, added and encoded again."""

    def __init__(
        self,
        packet: Packet,
        ctx: RankContext,
        group_rank: int,
        number: int,
        owner: int,
        sum_coder: SumCoder | None,
    ) -> None:
        self.packet, self.ctx, self.number, self.sum_coder = packet, ctx, number, sum_coder
        self.owner = ctx.group[owner]
        self.coder_of = (
            sum_coder.coder_of(number) if sum_coder else (packet.coder, packet.spec, packet.state)
        )
        self.expected = Expected.of(packet.coder, packet.spec)
        self.expected_whole = Expected.of(self.coder_of[0], self.coder_of[1])
        self.received: list[tuple[int, Tensor, bool]] = [(group_rank, packet.payload, True)]
        self.total: Tensor | None = None
        self.final: Tensor | None = None

    def receive_part(self, group_rank: int, payload: Tensor, raw: bool) -> None:
        self.received.append((group_rank, payload, raw))

    def receive_parts(
        self, group_ranks: Sequence[int], payloads: Sequence[Tensor], raw: Sequence[bool]
    ) -> None:
        self.received.extend(zip(group_ranks, payloads, raw, strict=True))

    def part(self) -> Tensor:
        # Nothing was added yet: the packet goes as it was first encoded.
        if self.total is None and len(self.received) == 1:
            return self.packet.payload
        packet = self.packet
        return packet.coder.encode(self._add_up(), packet.spec, packet.state, self._hop())

    def whole(self) -> Tensor:
        # Encode the sum once: by its own coder, from the packets at once, or from the sum so far.
        if self.final is None:
            packet, back = self.packet, self.ctx.child("back")
            if self.sum_coder is not None:
                self.final = self.sum_coder.encode(self._add_up(), self.number)
            elif self.total is None and all(raw for *_, raw in self.received):
                ordered = sorted(self.received, key=lambda each: each[0])
                received = [
                    (self.ctx.group[group_rank], payload) for group_rank, payload, _ in ordered
                ]
                self.final = packet.coder.encode_sum(
                    received, packet.spec, packet.state, packet.ctx, back
                )
            else:
                self.final = packet.coder.encode(self._add_up(), packet.spec, packet.state, back)
        return self.final

    def receive_whole(self, payload: Tensor) -> None:
        self.final = payload

    def open(self, into: Tensor | None) -> Tensor:
        coder, spec, state = self.coder_of
        return opened(coder, self.whole(), spec, state, self.ctx.child("back"), self.owner, into)

    def _add_up(self) -> Tensor:
        """Add what was received since the last sum, in the order of ranks."""
        packet = self.packet
        # A packet as first encoded is decoded in its sender's context, one that was encoded again
        # on its way in that of hops: random draws are keyed by it.
        for group_rank, payload, raw in sorted(self.received, key=lambda each: each[0]):
            sender = self.ctx.group[group_rank]
            sender_ctx = packet.ctx if raw else self._hop()
            if self.total is None:
                self.total = packet.coder.decode(
                    payload, packet.spec, packet.state, sender_ctx, sender
                )
            else:
                packet.coder.accumulate(
                    self.total, payload, packet.spec, packet.state, sender_ctx, sender
                )
        self.received = []
        assert self.total is not None
        return self.total

    def _hop(self) -> RankContext:
        """Return the context that encodes a sum on its way.

        It is the same for all hops: a rank encodes a chunk once on its way, and ranks may count
        their moves otherwise.
        """
        return self.ctx.child("hop")


def added(payloads: Sequence[Tensor], sums: tuple[tuple[int, torch.dtype], ...]) -> Tensor:
    """Add payloads unopened, in order; in place in the first where it can be.

    Sums of narrow floats are taken in float32 and rounded once.

    Example:
        >>> values = torch.tensor([256.0, 1.0, 1.0], dtype=torch.bfloat16)
        >>> payloads = [value.view(1).view(torch.uint8) for value in values]
        >>> added(payloads, ((2, torch.bfloat16),)).view(torch.bfloat16)
        tensor([258.], dtype=torch.bfloat16)
    """
    # A payload is a sequence of runs of one number type each.
    runs, at = [], 0
    for nbytes, dtype in sums:
        first, *others = _numbers(payloads, at, nbytes, dtype)
        total = (
            first.float() if dtype.itemsize < torch.float32.itemsize and len(others) > 1 else first
        )
        for other in others:
            total.add_(other)
        runs.append(reference.as_bytes(total.to(dtype)))
        at += nbytes
    return runs[0] if len(runs) == 1 else torch.cat(runs) if runs else payloads[0]


def _numbers(payloads: Sequence[Tensor], at: int, nbytes: int, dtype: torch.dtype) -> list[Tensor]:
    """Return a run of each payload as numbers."""
    # Of many small ones a copy of all, cut by one call, costs less than a view of each.
    if len(payloads) > _FEW and 0 < nbytes == payloads[0].numel() <= _SMALL_BYTES:
        return list(torch.cat(list(payloads)).view(dtype).view(len(payloads), -1).unbind(0))
    return [reference.from_bytes(payload[at : at + nbytes], dtype) for payload in payloads]
