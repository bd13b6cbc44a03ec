"""Sum by the transport's own all-reduce, for payloads that may be added unopened.

T = 2 (K-1) (α + o + m/(K B)) for a ring, m the payload and o the time a message: the least bytes
that any all-reduce can send. A transport that keeps w bytes in flight waits for a round trip after
each w but the last: for large m, B is then at most w/(2 α) (gloo: w = 2 MiB).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from thinwire.core import (
    AllReduce,
    Codec,
    Flight,
    Link,
    Outcome,
    Packet,
    RankContext,
    Route,
    Spec,
    State,
    allreduce_messages,
    allreduce_nbytes,
)
from thinwire.how._plan import largest
from thinwire.how._rounds import TensorFlight, one_span
from thinwire.kernels import reference


@dataclass(frozen=True)
class native(Route):
    """All-reduce by gloo, NCCL, or whatever the process group is.

    Raises:
        StrategyError: (when the strategy is built) the codec's payloads cannot be added unopened.

    Example:
        >>> from thinwire.what import uniform
        >>> native().refuses(uniform(bits=4))[:71]
        "Cannot carry uniform(bits=4, block=256, rounding='nearest', step=None, "
    """

    carries_mask: ClassVar[bool] = True

    @property
    def uses_allreduce(self) -> bool:
        return True

    def partners(self, group_rank: int, world: int) -> int:
        return min(2, world - 1)  # the transport's own ring

    def refuses(self, codec: Codec) -> str | None:
        if codec.traits.summable:
            return None
        return (
            f"Cannot carry {codec!r} over native(): its payloads cannot be added unopened. "
            "Use gather() for 2 ranks or sparse payloads, two_shot() for dense ones on more ranks"
        )

    def carry(
        self, codec: Codec, x: Tensor, spec: Spec, state: State, ctx: RankContext
    ) -> Flight[Outcome]:
        return (yield from one_span(codec.rounds(x, spec, state.child("codec"), ctx), _total))

    def sent_nbytes(self, codec: Codec, spec: Spec, ctx: RankContext) -> float | None:
        nbytes = codec.nbytes(spec)
        return None if nbytes is None else allreduce_nbytes(nbytes, ctx.world)

    def sent_messages(self, codec: Codec, spec: Spec, ctx: RankContext) -> float | None:
        nbytes = codec.nbytes(spec)
        return (
            None
            if nbytes is None or codec.single_packet_coder is None
            else allreduce_messages(nbytes, ctx.world)
        )

    def seconds(self, codec: Codec, spec: Spec, ctx: RankContext, link: Link) -> float:
        return allreduce_seconds(largest(codec, spec), ctx.world, link)


def allreduce_seconds(nbytes: int, world: int, link: Link) -> float:
    """Return the seconds of the transport's own all-reduce, as a ring."""
    if not nbytes:
        return 0.0
    return (
        2
        * (world - 1)
        * (link.delay_s + link.message_s + nbytes / world / link.windowed(nbytes / world))
    )


def _total(packet: Packet) -> TensorFlight:
    summed, at = [], 0
    # Each run of the payload is one all-reduce of numbers; the transport adds in place.
    for nbytes, dtype in packet.sums:
        run = reference.from_bytes(packet.payload[at : at + nbytes], dtype)
        at += nbytes
        if nbytes and packet.ctx.world > 1:
            run = yield AllReduce(run, packet.ctx.group)
        summed.append(reference.as_bytes(run))
    payload = summed[0] if len(summed) == 1 else torch.cat(summed) if summed else packet.payload
    return packet.open(payload, packet.ctx.rank)
