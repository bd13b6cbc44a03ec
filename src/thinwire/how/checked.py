"""Send a checksum behind each message, so that a payload damaged on its way is refused unread.

Steps, for each exchange of the route inside:
    1. append to each message that is not empty its CRC-32, 4 bytes
    2. the receiver takes the 4 bytes off and computes the CRC-32 of the rest; where they differ,
       the flight ends in an error
One or two wrong bits, and any burst of up to 32 bits, are always found; of other changes one in
2^32 is not. T = that of the route inside + 4 bytes a message, and the time to read each byte once
more at either end. (CRC-32: Peterson & Brown 1961; as IEEE 802.3 has it, by zlib.)
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from thinwire.core import (
    Codec,
    Exchange,
    Flight,
    Hop,
    Link,
    Outcome,
    RankContext,
    Ranks,
    Route,
    Spec,
    State,
    Target,
)
from thinwire.errors import PayloadError, StrategyError
from thinwire.kernels import memory, reference

_BYTES = 4


@dataclass(frozen=True)
class checked(Route):
    """Carry by another route, with a checksum behind each of its messages; sums are the same bits.

    Args:
        route: any route that moves bytes by messages of its own, alone or of levels; not what the
            transport adds by itself.

    Raises:
        StrategyError: the route has hops that the transport adds by itself, which nobody can look
            into; it is checked already; (in flight) tensors that are not on the CPU.
        PayloadError: (in flight) a payload does not have the checksum that came with it: rank,
            it names rank, route, step, slice and sender.

    Example:
        >>> import torch
        >>> from thinwire.how import direct
        >>> from thinwire.what import identity
        >>> spec, ctx = Spec((), 0, 300, torch.float32), RankContext(0, (0, 1, 2), 0, 0)
        >>> [route.sent_nbytes(identity(), spec, ctx) for route in (direct(), checked(direct()))]
        [1600, 1616]
    """

    route: Route
    verifies: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.route.uses_allreduce:
            raise StrategyError(
                f"checked({self.route!r}): the transport adds up by itself there, and its "
                "messages cannot be looked into. Use "
                "direct() or ring() instead of native(), inside hierarchical() as (direct(), "
                "identity()), and auto(routes=(…)) without it"
            )
        if isinstance(self.route, checked):
            raise StrategyError(f"checked({self.route!r}): it is checked already; leave one out")

    @property
    def consensus(self) -> bool:  # type: ignore[override]
        return self.route.consensus

    @property
    def carries_mask(self) -> bool:  # type: ignore[override]
        return self.route.carries_mask

    @property
    def needs_link(self) -> bool:
        return self.route.needs_link

    def init(self, codec: Codec, spec: Spec, ctx: RankContext) -> State:
        return self.route.init(codec, spec, ctx)

    def groups(self, world: int) -> tuple[Ranks, ...]:
        return self.route.groups(world)

    def partners(self, group_rank: int, world: int) -> int:
        return self.route.partners(group_rank, world)

    def refuses(self, codec: Codec) -> str | None:
        return self.route.refuses(codec)

    def suits(self, on: Target) -> str | None:
        return self.route.suits(on)

    def bind(self, world: int, link: Link | None = None) -> Self:
        return replace(self, route=self.route.bind(world, link))

    def choose(self, codec: Codec, spec: Spec, world: int) -> Route:
        return replace(self, route=self.route.choose(codec, spec, world))

    def carry(
        self, codec: Codec, x: Tensor, spec: Spec, state: State, ctx: RankContext
    ) -> Flight[Outcome]:
        if x.device.type != "cpu":
            raise StrategyError(
                f"{self!r} reads each payload on the CPU, and these are on {x.device}: take "
                f"{self.route!r} there"
            )
        flight, reply = self.route.carry(codec, x, spec, state, ctx), None
        try:
            while True:
                # Seal what goes out, open what comes in: the route inside never sees a checksum.
                hop = flight.send(reply)
                reply = _opened((yield _sealed(hop)), self.route, spec, ctx)
        except StopIteration as stop:
            outcome: Outcome = stop.value
            return outcome

    def reencodes(self, codec: Codec, world: int) -> int:
        return self.route.reencodes(codec, world)

    def sent_nbytes(self, codec: Codec, spec: Spec, ctx: RankContext) -> float | None:
        """Return the bytes of the route inside and 4 a message; `None` where it does not know
        either."""
        nbytes, messages = (
            self.route.sent_nbytes(codec, spec, ctx),
            self.route.sent_messages(codec, spec, ctx),
        )
        return None if nbytes is None or messages is None else nbytes + _BYTES * messages

    def sent_messages(self, codec: Codec, spec: Spec, ctx: RankContext) -> float | None:
        return self.route.sent_messages(codec, spec, ctx)

    def seconds(self, codec: Codec, spec: Spec, ctx: RankContext, link: Link) -> float:
        """Return the seconds of the route inside; no formula is exact to 4 bytes a message."""
        return self.route.seconds(codec, spec, ctx, link)


def crc(payload: Tensor) -> int:
    """Return the CRC-32 of a payload (nbytes,) uint8 on the CPU.

    Example:
        >>> hex(crc(torch.tensor(list(b"123456789"), dtype=torch.uint8)))
        '0xcbf43926'
    """
    return zlib.crc32(payload.contiguous().numpy().data)


def _sealed(hop: Hop) -> Exchange:
    """Return the same exchange with a checksum behind each message."""
    assert isinstance(hop, Exchange), "refused when it was built"
    sums: dict[tuple[int, int], Tensor] = {}  # by address: one payload may go to many ranks

    def seal(payload: Tensor) -> Tensor:
        key = (payload.data_ptr(), payload.numel())
        if key not in sums:
            sums[key] = memory.cat(
                [payload, reference.as_bytes(torch.tensor([crc(payload)], dtype=torch.uint32))]
            )
        return sums[key]

    send = tuple(
        (rank, seal(payload) if payload.numel() else payload) for rank, payload in hop.send
    )
    return Exchange(
        send, tuple((rank, nbytes + _BYTES if nbytes else 0) for rank, nbytes in hop.recv)
    )


def _opened(
    payloads: dict[int, Tensor], route: Route, spec: Spec, ctx: RankContext
) -> dict[int, Tensor]:
    """Return the payloads of an exchange without their checksums, which must be right."""
    return {
        rank: _unsealed(payload, rank, route, spec, ctx) if payload.numel() else payload
        for rank, payload in payloads.items()
    }


def _unsealed(sealed: Tensor, sender: int, route: Route, spec: Spec, ctx: RankContext) -> Tensor:
    # A clone, as the last 4 bytes may not lie on a whole word.
    payload, sent_crc = sealed[:-_BYTES], int(sealed[-_BYTES:].clone().view(torch.uint32))
    own_crc = crc(payload)
    if own_crc != sent_crc:
        where = f"values {spec.begin} to {spec.end}" + (
            f" (from {spec.parts[0].name!r})" if spec.parts else ""
        )
        raise PayloadError(
            f"rank {ctx.rank}, step {ctx.step}, {where}, over {route!r}: {payload.numel()} "
            f"bytes from rank {sender} came corrupted: "
            f"their CRC-32 is {own_crc:08x}, and {sent_crc:08x} was sent. Nothing of them was "
            "used; "
            "look at the memory of the two hosts and the "
            "network between them, and go on from the last checkpoint"
        )
    return payload
