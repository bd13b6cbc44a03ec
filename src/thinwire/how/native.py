"""The transport's own all-reduce, on payloads that may be added unopened.

T = 2 (K-1) α + 2 (K-1)/K · m/B for a ring, m the payload: the least bytes that any all-reduce can send.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from thinwire.core import AllReduce, Codec, Flight, Packet, Route, Seat, Spec, State, allreduce_nbytes
from thinwire.how._talk import Talk, one_span
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

    def refuses(self, codec: Codec) -> str | None:
        if codec.summable:
            return None
        return (
            f"Cannot carry {codec!r} over native(): its payloads cannot be added unopened. "
            "Use gather() for 2 ranks or sparse payloads, two_shot() for dense ones on more ranks"
        )

    def carry(self, codec: Codec, x: Tensor, spec: Spec, state: State, seat: Seat) -> Flight:
        return (yield from one_span(codec.rounds(x, spec, state.child("codec"), seat), _total))

    def sent_nbytes(self, codec: Codec, spec: Spec, seat: Seat) -> float | None:
        nbytes = codec.nbytes(spec)
        return None if nbytes is None else allreduce_nbytes(nbytes, seat.world)


def _total(packet: Packet) -> Talk:
    summed, at = [], 0
    for nbytes, dtype in packet.sums:
        run = reference.from_bytes(packet.payload[at : at + nbytes], dtype)
        at += nbytes
        if nbytes and packet.seat.world > 1:
            run = yield AllReduce(run, packet.seat.group)
        summed.append(reference.as_bytes(run))
    payload = summed[0] if len(summed) == 1 else torch.cat(summed) if summed else packet.payload
    return packet.open(payload, packet.seat.rank)
