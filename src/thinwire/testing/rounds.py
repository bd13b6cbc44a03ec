"""Run the rounds of a codec's ranks in one process.

Every packet is answered with the sum, in rank order, of what the ranks' packets decode to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from thinwire.core import Codec, Flight, Hop, Outcome, Packet, RankContext, Rounds, Spec, State
from thinwire.testing.cases import require, same


def relayed(flight: Flight[Outcome], through: Callable[[Hop], Hop]) -> Flight[Outcome]:
    """Return the same flight, each of whose hops is what `through` makes of it."""
    reply: Any = None
    while True:
        try:
            hop = flight.send(reply)
        except StopIteration as stop:
            outcome: Outcome = stop.value
            return outcome
        reply = yield through(hop)


@dataclass
class FlightRecord:
    """One flight of all ranks: the packets and payloads of each round by rank, and the outcomes by
    rank."""

    rounds: list[dict[int, Packet]] = field(default_factory=list)
    payloads: list[dict[int, Tensor]] = field(default_factory=list)
    outcomes: dict[int, Outcome] = field(default_factory=dict)


def fresh_states(codec: Codec, spec: Spec, at: Mapping[int, RankContext]) -> dict[int, State]:
    """Return the first state of each rank."""
    return {rank: codec.init(spec, ctx) for rank, ctx in at.items()}


def run_rounds(
    codec: Codec,
    xs: Mapping[int, Tensor],
    spec: Spec,
    states: Mapping[int, State],
    contexts: Mapping[int, RankContext],
    case: str,
) -> FlightRecord:
    """Run all ranks' rounds on their xs, and check every packet on its way."""
    flows = {rank: codec.rounds(xs[rank], spec, states[rank], contexts[rank]) for rank in xs}
    record = FlightRecord()
    replies: dict[int, Tensor | None] = dict.fromkeys(flows)
    while True:
        # 1. Ask every rank for its next packet; at the end all must end together.
        packets = {}
        for rank, flow in flows.items():
            packet = _next(flow, replies[rank])
            if isinstance(packet, Outcome):
                record.outcomes[rank] = packet
            else:
                packets[rank] = packet
        require(
            len(packets) in (0, len(flows)),
            codec,
            "all ranks send as many packets",
            case,
            f"only ranks {list(packets)} go on",
        )
        if not packets:
            return record
        # 2. Copies, since whoever opens a payload may write into it.
        payloads = {rank: packet.payload.clone() for rank, packet in packets.items()}
        record.rounds.append(packets)
        record.payloads.append(payloads)
        # 3. Each rank adds up what all sent, in rank order, as a route would.
        for rank, packet in packets.items():
            _check_packet(codec, packet, case)
            replies[rank] = add_up(packet, payloads)
        _check_fill(codec, packets, payloads, case)
        totals = [reply for reply in replies.values() if reply is not None]
        alike = all(same(total, totals[0]) for total in totals)
        require(alike, codec, "all ranks open the same payloads to the same bits", case)


def add_up(packet: Packet, payloads: Mapping[int, Tensor]) -> Tensor:
    """Return the sum, in rank order, of what the payloads of one round decode to for the rank whose
    packet this is."""
    total: Tensor | None = None
    for sender, payload in payloads.items():
        total = packet.add(total, payload.clone(), sender)
    assert total is not None
    return total


def _check_fill(
    codec: Codec, packets: Mapping[int, Packet], payloads: Mapping[int, Tensor], case: str
) -> None:
    """Check that a payload opened into a tensor gives the bits that it opens to."""
    rank, packet = next(iter(packets.items()))
    opened = packet.open(payloads[rank].clone(), rank)
    filled = torch.full_like(opened, 3)
    packet.coder.fill(filled, payloads[rank].clone(), packet.spec, packet.state, packet.ctx, rank)
    require(same(filled, opened), codec, "`fill` writes the bits that `decode` returns", case)


def _next(flow: Rounds, reply: Tensor | None) -> Packet | Outcome:
    try:
        return flow.send(reply)  # type: ignore[arg-type]  # a generator's first reply is None
    except StopIteration as stop:
        outcome: Outcome = stop.value
        return outcome


def _check_packet(codec: Codec, packet: Packet, case: str) -> None:
    # 1. The payload: flat bytes, as many as the coder states.
    payload = packet.payload
    flat = payload.dtype == torch.uint8 and payload.dim() == 1 and payload.is_contiguous()
    require(
        flat,
        codec,
        "a payload is flat, contiguous bytes",
        case,
        f"it is {tuple(payload.shape)} {payload.dtype}",
    )
    exact, most = packet.coder.nbytes(packet.spec), packet.coder.max_nbytes(packet.spec)
    fits = payload.numel() == exact if exact is not None else payload.numel() <= most
    require(
        fits,
        codec,
        "a packet has the bytes that its coder states",
        case,
        f"{payload.numel()} bytes, stated {exact}, at most {most}",
    )
    # 2. Runs of numbers that may be added: all of it, or none.
    covered = sum(nbytes for nbytes, _ in packet.sums)
    must = codec.traits.summable or bool(packet.sums)
    require(
        not must or covered == payload.numel(),
        codec,
        "sums cover the payload",
        case,
        f"{covered} of {payload.numel()} bytes",
    )
    # 3. What it decodes to, from a copy.
    opened = packet.open(payload.clone(), packet.ctx.rank)
    right = (
        opened.shape == (packet.spec.numel,)
        and opened.dtype == packet.spec.work
        and opened.device == payload.device
    )
    require(
        right,
        codec,
        "a packet decodes to its span, flat, in its work dtype",
        case,
        f"to {tuple(opened.shape)} {opened.dtype}",
    )
