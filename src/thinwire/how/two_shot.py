"""Reduce-scatter, then all-gather, both compressed: each rank owns a K-th of the bucket.

Steps:
    1. cut the bucket in K spans at the codec's grain, span j owned by rank j; encode each
    2. send span j's payload to its owner; each owner decodes K payloads, in rank order, and adds them
    3. the owner encodes the sum again (by `back`, or by the codec that opened the payloads) and sends it to the others
    4. every rank, the owner too, decodes the K sums
T = 2 (K-1) α + 2 (K-1)/K · m/B: the least bytes, two losses. `back=feedback(sign())` keeps the second loss for later (two-sided feedback).
(The scheme of 1-bit Adam's compressed all-reduce, Tang et al. 2021, arXiv:2102.02888, and of ZeRO++'s qgZ, arXiv:2306.10209.)
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thinwire.core import Codec, Coder, Flight, Grain, Hop, Outcome, Packet, Route, Seat, Spec, State
from thinwire.how._talk import swap
from thinwire.kernels import memory


@dataclass(frozen=True)
class two_shot(Route):
    """All-to-all of encoded spans, sum, all-gather of encoded sums.

    Args:
        back: the codec of the sums; `None` uses the coder that opens the codec's own packets, without feedback.

    Raises:
        StrategyError: (when the strategy is built) `back` is `None` and the codec leaves entries out, which a second time would lose what
            the ranks chose; or `back` is given and a codec speaks in several rounds or parts.

    Example:
        >>> from thinwire.what import topk
        >>> "give back=" in two_shot().refuses(topk(0.01))
        True
    """

    back: Codec | None = None

    def refuses(self, codec: Codec) -> str | None:
        if self.back is None and codec.drops:
            return (
                f"Cannot carry {codec!r} over two_shot(): encoding the sum again would drop entries that the ranks chose to send. "
                "Use gather(), or give back= a codec with feedback, such as two_shot(back=feedback(topk(…)))"
            )
        if self.back is not None and (codec.opener is None or self.back.opener is None):
            odd = codec if codec.opener is None else self.back
            return (
                f"Cannot use two_shot(back={self.back!r}) with {codec!r}: {odd!r} speaks in several rounds or parts. "
                "Use back=None or gather()"
            )
        return None

    def init(self, codec: Codec, spec: Spec, seat: Seat) -> State:
        state = State(children={"codec": State()})
        for j, span in enumerate(spec.cut(seat.world, self._grain(codec))):
            state.child("codec").children[str(j)] = codec.init(span, seat)
            if self.back is not None and j == seat.place:
                own = self.back.init(span, seat)
                for _, leaf in own.walk():
                    leaf.kind = "sharded" if leaf.kind == "summed" else leaf.kind
                state.children["back"] = own
        return state

    def carry(self, codec: Codec, x: Tensor, spec: Spec, state: State, seat: Seat) -> Flight:
        spans = spec.cut(seat.world, self._grain(codec))
        flows = {
            j: codec.rounds(x[span.begin - spec.begin : span.end - spec.begin], span, state.child("codec").child(str(j)), seat)
            for j, span in enumerate(spans)
        }
        replies: dict[int, Tensor | None] = dict.fromkeys(flows)
        outcomes: dict[int, Outcome] = {}
        while flows:
            packets: dict[int, Packet] = {}
            for j, flow in list(flows.items()):
                try:
                    packets[j] = flow.send(replies[j])  # type: ignore[arg-type]  # a generator's first reply is None
                except StopIteration as stop:
                    outcomes[j] = stop.value
                    del flows[j]
            if packets:
                totals = yield from self._round(packets, spans, state, seat)
                replies = {**totals}
        ordered = [outcomes[j] for j in range(len(spans))]
        shares = [outcome.sent for outcome in ordered if outcome.sent is not None]
        known = len(shares) == len(ordered)
        return Outcome(
            memory.cat([outcome.total for outcome in ordered]), (lambda: torch.cat([own() for own in shares])) if known else None
        )

    def _round(
        self, packets: dict[int, Packet], spans: tuple[Spec, ...], state: State, seat: Seat
    ) -> Generator[Hop, Any, dict[int, Tensor]]:
        """One packet of each span to its owner, and the owners' sums back: {span: sum}."""
        ranks, me = seat.group, seat.place
        device = next(iter(packets.values())).payload.device
        away = [j for j in _after(me, len(ranks)) if j in packets]
        mine = packets.get(me)
        sources = [(rank, mine.coder, mine.spec) for rank in reversed(seat.others)] if mine else []
        got = yield from swap([(ranks[j], packets[j].payload, packets[j].fixed) for j in away], sources, device)

        back_seat = seat.under("back")
        answer: Tensor | None = None
        if mine is not None:
            got[seat.rank] = mine.payload
            heard = [(rank, got.pop(rank)) for rank in ranks]
            answer = self._encode_back(mine, heard, spans[me], state, back_seat)
        openers = {j: self._opener(packet, spans[j]) for j, packet in packets.items()}
        known = mine is not None and openers[me][0].nbytes(openers[me][1]) is not None
        send = [(rank, answer, known) for rank in seat.others] if answer is not None else []
        back = yield from swap(send, [(ranks[j], openers[j][0], openers[j][1]) for j in reversed(away)], device)
        if answer is not None:
            back[seat.rank] = answer
        totals = {}
        for j in packets:
            coder, span, opening = openers[j]
            totals[j] = coder.decode(back[ranks[j]], span, opening, back_seat, ranks[j])
        return totals

    def _encode_back(self, packet: Packet, heard: list[tuple[int, Tensor]], span: Spec, state: State, seat: Seat) -> Tensor:
        """The payload of the sum of what was heard, added in the ranks' order."""
        if self.back is None:
            return packet.coder.encode_sum(heard, packet.spec, packet.state, packet.seat, seat)
        total: Tensor | None = None
        for rank, payload in heard:
            total = packet.add(total, payload, rank)
        assert total is not None
        return next(self.back.rounds(total, span, state.child("back"), seat)).payload  # its residual is settled before it yields

    def _opener(self, packet: Packet, span: Spec) -> tuple[Coder, Spec, State]:
        """Who decodes the sum of a span, as what, and with which state."""
        if self.back is None:
            return packet.coder, packet.spec, packet.state
        opener = self.back.opener
        assert opener is not None
        return opener, span, opener.init(span, packet.seat)

    def _grain(self, codec: Codec) -> Grain:
        """The coarser of the two codecs' grains."""
        grains = [codec.grain, self.back.grain if self.back else 1]
        words: tuple[Grain, ...] = ("bucket", "part")
        for word in words:
            if word in grains:
                return word
        return math.lcm(*(grain for grain in grains if isinstance(grain, int)))

    def sent_nbytes(self, codec: Codec, spec: Spec, seat: Seat) -> float | None:
        spans = spec.cut(seat.world, self._grain(codec))
        there = [codec.nbytes(span) for j, span in enumerate(spans) if j != seat.place]
        again = (self.back or codec).nbytes(spans[seat.place])
        if again is None or None in there:
            return None
        return sum(size or 0 for size in there) + (seat.world - 1) * again


def _after(me: int, world: int) -> list[int]:
    """The other places in the order of a phased exchange."""
    return [(me + k) % world for k in range(1, world)]
