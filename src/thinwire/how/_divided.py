"""Carry a codec that `divides`: encode a bucket at once, and cut what it sends into its spans'
payloads.

One call encodes, and one decodes, whatever the number of spans. A payload has sections, such as
scales and codes; a bucket's has those of its spans, one behind the other. So cutting and joining
only reorder bytes. What moves, and the bytes of each message, are as if each span were encoded on
its own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any

import torch
from torch import Tensor

from thinwire.core import Coder, Exchange, Packet, RankContext, Sectioned, Spec, State
from thinwire.how._moves import Message, Move
from thinwire.how._rounds import TensorFlight, opened
from thinwire.how._sums import Opened, SumCoder, Unopened
from thinwire.kernels import memory

_SMALL_BYTES, _JOINED_BYTES = 1 << 18, 1 << 24
"""Up to the first size the interpreter cuts a payload in copies, up to the second in views, and
joins them; both are faster than a tensor for each piece."""


@dataclass(frozen=True, slots=True)
class Order:
    """An order of the runs of a payload, and the one to join them in.

    sizes: the bytes of each, as they lie. kinds: sections a span. by_span: they lie span by span,
    and are wanted section by section; else the other way round.
    """

    sizes: tuple[int, ...]
    kinds: int
    by_span: bool
    cutter: struct.Struct

    @classmethod
    def of(cls, runs: Iterable[int], kinds: int, *, by_span: bool) -> Order:
        runs = tuple(runs)
        return cls(runs, kinds, by_span, struct.Struct("".join(f"{n}s" for n in runs)))

    def apply(self, payload: Tensor) -> Tensor:
        """Return the payload with its runs in the other order."""
        nbytes = payload.numel()
        if self.kinds == 1 or not nbytes:
            return payload
        if payload.device.type != "cpu" or nbytes > _JOINED_BYTES:
            return memory.cat(list(self._ordered(payload.split(self.sizes))))
        data: Any = payload.numpy()
        if nbytes > _SMALL_BYTES:
            view = memoryview(data)
            cut: Sequence[Any] = [
                view[low:high] for low, high in pairwise(accumulate(self.sizes, initial=0))
            ]
        else:
            cut = self.cutter.unpack(data)
        return torch.frombuffer(bytearray().join(self._ordered(cut)), dtype=torch.uint8)

    def _ordered(self, runs: Sequence[Any]) -> Iterable[Any]:
        kinds, spans = self.kinds, len(runs) // self.kinds
        if self.by_span:
            return chain.from_iterable(runs[kind::kinds] for kind in range(kinds))
        sections = [runs[at : at + spans] for at in range(0, len(runs), spans)]
        return chain.from_iterable(zip(*sections, strict=True))


@dataclass(frozen=True, slots=True)
class Cut:
    """A plan of how a bucket's payload divides in those of its spans, of `sizes` bytes."""

    sizes: tuple[int, ...]
    to_spans: Order
    to_bucket: Order

    @classmethod
    def of(cls, coder: Coder, spans: Iterable[Spec]) -> Cut:
        assert isinstance(coder, Sectioned), f"{coder!r} divides, and states no sections"
        by_span = [coder.sections(span) for span in spans]
        # equal numbers are one object: a plan of thousands of spans is kept
        one = {n: n for sizes in by_span for n in (*sizes, sum(sizes))}
        by_span = [tuple(map(one.__getitem__, sizes)) for sizes in by_span]
        by_section, kinds = zip(*by_span, strict=True), len(by_span[0])
        return cls(
            tuple(one[sum(sizes)] for sizes in by_span),
            Order.of(chain.from_iterable(by_section), kinds, by_span=False),
            Order.of(chain.from_iterable(by_span), kinds, by_span=True),
        )

    def divided(self, payload: Tensor) -> Sequence[Tensor]:
        """Return the payload of each span, from that of the bucket."""
        # split of torch itself, which knows tuples; the one of Tensor wraps it
        return torch.split_with_sizes(self.to_spans.apply(payload), self.sizes)

    def joined(self, payloads: Sequence[Tensor]) -> Tensor:
        """Return the payload of the bucket, from those of its spans."""
        return self.to_bucket.apply(memory.cat(payloads))


@dataclass(frozen=True, slots=True)
class Step:
    """An exchange of one rank, as lists by message: ranks of the world, and one chunk a message.

    parts_out, wholes_out: the chunks sent; one of them is empty. peers_in: ranks of the group.
    several: the messages of a move that holds more than one chunk in some message, else `None`.
    """

    ranks_out: tuple[int, ...] = ()
    parts_out: tuple[int, ...] = ()
    wholes_out: tuple[int, ...] = ()
    ranks_in: tuple[int, ...] = ()
    peers_in: tuple[int, ...] = ()
    parts_in: tuple[int, ...] = ()
    wholes_in: tuple[int, ...] = ()
    raw_in: tuple[bool, ...] = ()
    several: Move | None = None

    @classmethod
    def of(cls, move: Move, group: Sequence[int]) -> Step:
        out, into = move.send, move.recv
        if not (_of_one(out) and _of_one(into)):
            return cls(
                tuple(group[message.peer] for message in out),
                ranks_in=tuple(group[message.peer] for message in into),
                several=move,
            )
        return cls(
            tuple(group[message.peer] for message in out),
            tuple(message.parts[0] for message in out if message.parts),
            tuple(message.wholes[0] for message in out if message.wholes),
            tuple(group[message.peer] for message in into),
            tuple(message.peer for message in into),
            tuple(message.parts[0] for message in into if message.parts),
            tuple(message.wholes[0] for message in into if message.wholes),
            tuple(message.parts[0] in message.raw for message in into if message.parts),
        )

    @property
    def opened(self) -> set[int]:
        """Return the chunks of which a part comes to this rank, which it adds to its own."""
        if self.several is not None:
            return {j for message in self.several.recv for j in message.parts}
        return set(self.parts_in)


def _of_one(messages: Sequence[Message]) -> bool:
    """Return whether each message has one chunk, and all have parts, or all have sums."""
    return all(
        len(message.parts) + len(message.wholes) == 1
        and bool(message.parts) == bool(messages[0].parts)
        for message in messages
    )


class Chunks:
    """The chunks of one round: what this rank has of each, by number.

    Args:
        packet: this rank's, of the whole bucket.
        payloads: of each chunk, as this rank encoded it.
        specs: of the chunks that this rank adds to.
        owners: of each chunk.
        unopened: payloads are added as they are.
        sum_coder: encodes sums, where it is not the coder of their parts.
    """

    def __init__(
        self,
        packet: Packet,
        payloads: Sequence[Tensor],
        specs: Mapping[int, Spec],
        owners: Sequence[int],
        ctx: RankContext,
        unopened: bool,
        sum_coder: SumCoder | None,
    ) -> None:
        self._packet, self._payloads, self._specs, self._owners = packet, payloads, specs, owners
        self._ctx, self._group_rank = ctx, ctx.group_rank
        self._unopened, self._sum_coder = unopened, sum_coder
        self._added: dict[int, Opened | Unopened] = {}
        self._wholes: dict[int, Tensor] = {}

    def send(self, step: Step) -> tuple[tuple[int, Tensor], ...]:
        """Return the messages of a step: (rank, payload)."""
        payloads: Sequence[Tensor]
        if step.several is not None:
            payloads = [
                memory.cat([*map(self._part, message.parts), *map(self._whole, message.wholes)])
                for message in step.several.send
            ]
        elif step.parts_out:
            payloads = [
                self._payloads[j] if j not in self._added else self._part(j) for j in step.parts_out
            ]
        else:
            for j in set(step.wholes_out):
                self._whole(j)
            payloads = list(map(self._wholes.__getitem__, step.wholes_out))
        return tuple(zip(step.ranks_out, payloads, strict=True))

    def expect(
        self, step: Step, parts: Sequence[int], wholes: Sequence[int]
    ) -> tuple[tuple[int, int], ...]:
        """Return the sizes of the messages that come: (rank, bytes), from those of each chunk."""
        if step.several is not None:
            sizes = [
                sum(parts[j] for j in message.parts) + sum(wholes[j] for j in message.wholes)
                for message in step.several.recv
            ]
        elif step.parts_in:
            sizes = [parts[j] for j in step.parts_in]
        else:
            sizes = [wholes[j] for j in step.wholes_in]
        return tuple(zip(step.ranks_in, sizes, strict=True))

    def take(
        self,
        step: Step,
        received: dict[int, Tensor],
        parts: Sequence[int],
        wholes: Sequence[int],
    ) -> None:
        """Take in what has come, to be added when the chunk is sent or opened."""
        if step.several is not None:
            for rank, message in zip(step.ranks_in, step.several.recv, strict=True):
                sizes = [parts[j] for j in message.parts] + [wholes[j] for j in message.wholes]
                runs = iter(received[rank].split(sizes))
                for j in message.parts:
                    self._adding(j).receive_part(message.peer, next(runs), j in message.raw)
                self._wholes.update(zip(message.wholes, runs, strict=True))
            return
        payloads = list(map(received.__getitem__, step.ranks_in))
        if step.wholes_in:
            self._wholes.update(zip(step.wholes_in, payloads, strict=True))
        elif len(set(step.parts_in)) == 1:
            self._adding(step.parts_in[0]).receive_parts(step.peers_in, payloads, step.raw_in)
        else:
            for j, peer, payload, raw in zip(
                step.parts_in, step.peers_in, payloads, step.raw_in, strict=True
            ):
                self._adding(j).receive_part(peer, payload, raw)

    def wholes(self) -> list[Tensor]:
        """Return the sum of each chunk, encoded, in order."""
        numbers = range(len(self._payloads))
        for j in numbers:
            if j not in self._wholes:
                self._whole(j)
        return list(map(self._wholes.__getitem__, numbers))

    def _part(self, j: int) -> Tensor:
        return self._added[j].part() if j in self._added else self._payloads[j]

    def _whole(self, j: int) -> Tensor:
        whole = self._wholes.get(j)
        if whole is None:
            whole = self._wholes[j] = self._adding(j).whole()
        return whole

    def _adding(self, j: int) -> Opened | Unopened:
        """Return the sum that this rank takes of a chunk; it begins with its own packet."""
        chunk = self._added.get(j)
        if chunk is None:
            own, payload = self._packet, self._payloads[j]
            sums = tuple((payload.numel(), dtype) for _, dtype in own.sums)
            packet = Packet(payload, self._specs[j], own.coder, own.state, own.ctx, sums)
            chunk = self._added[j] = (
                Unopened(packet, self._group_rank)
                if self._unopened and self._sum_coder is None
                else Opened(
                    packet, self._ctx, self._group_rank, j, self._owners[j], self._sum_coder
                )
            )
        return chunk


def total(
    packet: Packet,
    steps: Sequence[Step],
    cut: Cut,
    cut_of_sums: Cut,
    chunks: Chunks,
    coder: tuple[Coder, State],
    ctx: RankContext,
    into: Tensor | None,
) -> TensorFlight:
    """Send a bucket's packet by a plan, chunk by chunk; return the sum over ranks.

    Args:
        packet: of the bucket.
        steps: this rank's exchanges, in order.
        cut, cut_of_sums: how the payloads of parts, and of sums, divide.
        chunks: of the packet.
        coder: of the sums, and its state.
        ctx: in which sums are decoded.
        into: a tensor that the sum may be written into.
    """
    # 1. Exchange by exchange: send what the chunks hold, take in what comes.
    for step in steps:
        received = yield Exchange(
            chunks.send(step), chunks.expect(step, cut.sizes, cut_of_sums.sizes)
        )
        chunks.take(step, received, cut.sizes, cut_of_sums.sizes)
    # 2. Every rank decodes the same bytes of all sums, in one call.
    payload = cut_of_sums.joined(chunks.wholes())
    return opened(coder[0], payload, packet.spec, coder[1], ctx, ctx.rank, into)
