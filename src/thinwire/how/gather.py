"""Send each payload to all ranks; each rank decodes all of them and adds them up.

Steps:
    1. encode once; 2. send the payload to the K-1 others (phased in pairs); 3. decode K payloads
       and add them in rank order.
T = α + (K-1) (o + m/B), o the time a message. One loss, not two; the bytes grow with the world, so:
two ranks, or sparse payloads while m/M < 2/K.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from thinwire.core import Codec, Flight, Link, Outcome, Packet, RankContext, Route, Spec, State
from thinwire.how._plan import largest
from thinwire.how._rounds import TensorFlight, one_span, opened, swap, targets


@dataclass(frozen=True)
class gather(Route):
    """All-gather payloads of any codec; (K-1)·m bytes out of each rank.

    Example:
        >>> from thinwire.what import identity
        >>> import torch
        >>> spec, ctx = Spec((), 0, 10, torch.float32), RankContext(0, (0, 1, 2), 0, 0)
        >>> gather().sent_nbytes(identity(), spec, ctx)
        80
    """

    carries_mask: ClassVar[bool] = True
    opens_each_packet: ClassVar[bool] = True

    def carry(
        self, codec: Codec, x: Tensor, spec: Spec, state: State, ctx: RankContext
    ) -> Flight[Outcome]:
        # Where the codec has done with its input, sums may be written there.
        into = targets(codec, x, {0: spec}).get(0)
        rounds = codec.rounds(x, spec, state.child("codec"), ctx)
        return (yield from one_span(rounds, partial(_total, into)))

    def sent_nbytes(self, codec: Codec, spec: Spec, ctx: RankContext) -> float | None:
        nbytes = codec.nbytes(spec)
        return None if nbytes is None else (ctx.world - 1) * nbytes

    def sent_messages(self, codec: Codec, spec: Spec, ctx: RankContext) -> float | None:
        nbytes = codec.nbytes(spec)
        return (
            None
            if nbytes is None or codec.single_packet_coder is None
            else (ctx.world - 1) * (nbytes > 0)
        )

    def seconds(self, codec: Codec, spec: Spec, ctx: RankContext, link: Link) -> float:
        return link.seconds(*[largest(codec, spec)] * (ctx.world - 1))


def _total(into: Tensor | None, packet: Packet) -> TensorFlight:
    ctx = packet.ctx
    # 1. Send this rank's payload to all others, receive theirs.
    send = [(rank, packet.payload, packet.fixed) for rank in ctx.others]
    received = yield from swap(
        send,
        [(rank, packet.coder, packet.spec) for rank in reversed(ctx.others)],
        packet.payload.device,
    )
    received[ctx.rank] = packet.payload
    # 2. Add in the order of ranks, so that all ranks hold the same bits.
    #    The first is opened into the bucket, unless this rank's own payload lies there.
    first = ctx.group[0]
    if into is not None and _same_memory(into, packet.payload):
        into = None
    total = opened(packet.coder, received.pop(first), packet.spec, packet.state, ctx, first, into)
    for rank in ctx.group[1:]:
        packet.add(total, received.pop(rank), rank)
    return total


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
