"""Carry a bucket by a plan: a route says how many spans there are, who owns each, and how they
move.

`_moves` has the words of a plan, `_sums` adds up what moves, `_divided` does so for codecs that
encode all spans at once. A plan is made once for each bucket and kept (`_plans`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from thinwire.core import (
    Codec,
    Flight,
    Grain,
    Link,
    Outcome,
    Packet,
    RankContext,
    Route,
    Spec,
    State,
    needs_input_later,
)
from thinwire.how._divided import Chunks, Cut, Step, total
from thinwire.how._moves import Move
from thinwire.how._plans import Plan, Plans
from thinwire.how._rounds import TensorFlight, Totals, many_spans, one_span, targets
from thinwire.how._sums import SumCoder, totals

DIVIDED_BYTES = 1 << 17
"""The most bytes of a span's payload, on average, at which spans are encoded at once: a longer one
takes longer to cut out than to encode by itself."""
_PLANS = Plans(most_bytes=128 << 20)


class Planned(Route):
    """A route that moves the chunks of a bucket by a plan."""

    carries_mask: ClassVar[bool] = True
    unopened: ClassVar[bool] = True
    """Payloads that add are added unopened."""

    @abstractmethod
    def chunks(self, world: int) -> int:
        """Return how many spans the bucket is cut in."""

    @abstractmethod
    def owner(self, chunk: int, world: int) -> int:
        """Return the rank of the group where the sum of a chunk is whole first."""

    @abstractmethod
    def moves(self, group_rank: int, world: int) -> tuple[Move, ...]:
        """Return the exchanges of one rank of the group, in order."""

    def partners(self, group_rank: int, world: int) -> int:
        moves = self.moves(group_rank, world)
        return len({message.peer for move in moves for message in (*move.send, *move.recv)})

    def moves_of(self, codec: Codec, spec: Spec, ctx: RankContext) -> tuple[Move, ...]:
        """Return the exchanges of one flight; a route may choose them by its size."""
        return self.moves(ctx.group_rank, ctx.world)

    def refuses(self, codec: Codec) -> str | None:
        if codec.traits.drops and not codec.traits.summable:
            return (
                f"Cannot carry {codec!r} over {self!r}: encoding a sum again on its way would "
                "drop entries that the ranks chose to send. "
                "Use gather(), or two_shot(back=…) with a codec with feedback, such as "
                "two_shot(back=feedback(topk(…)))"
            )
        return None

    @property
    def back(self) -> Codec | None:
        """Return the codec of the sums; `None` where the coder of the parts encodes them."""
        return None

    def init(self, codec: Codec, spec: Spec, ctx: RankContext) -> State:
        # One state for all spans where they are encoded at once. A leaf is saved by parameter and
        # element, so another world may cut it otherwise.
        spans = self.spans(codec, spec, ctx.world)
        spans = (spec,) if self._divides(codec, spec, len(spans)) else spans
        return State(
            children={
                "codec": State(
                    children={str(j): codec.init(span, ctx) for j, span in enumerate(spans)}
                )
            }
        )

    def carry(
        self, codec: Codec, x: Tensor, spec: Spec, state: State, ctx: RankContext
    ) -> Flight[Outcome]:
        # 1. The plan is the same function on all ranks, so both ends of a message agree on it.
        plan = _PLANS.get(
            (self, codec, spec, ctx.rank, ctx.group), lambda: self._plan(codec, spec, ctx)
        )
        unopened = self.unopened and codec.traits.summable
        codec_state = state.child("codec")

        # 2. Each round of the codec moves one packet of each span by the whole plan ...
        def answer(packets: dict[int, Packet]) -> Totals:
            sum_coder = self._sum_coder(plan.spans, state, packets, ctx)
            into = targets(codec, x, plan.spans)
            return totals(plan.moves, plan.owners, packets, ctx, unopened, sum_coder, into)

        # ... or one packet of the bucket, which divides.
        def answer_at_once(packet: Packet) -> TensorFlight:
            assert plan.cut is not None
            assert plan.cut_of_sums is not None
            packets = dict.fromkeys(plan.spans, packet)
            sum_coder = self._sum_coder(plan.spans, state, packets, ctx)
            chunks = Chunks(
                packet,
                plan.cut.divided(packet.payload),
                plan.spans,
                plan.owners,
                ctx,
                unopened,
                sum_coder,
            )
            back = self.back.single_packet_coder if self.back is not None else None
            coder = (packet.coder, packet.state) if back is None else (back, back.init(spec, ctx))
            into = None if needs_input_later(codec) else x
            return total(packet, plan.steps, plan.cut, plan.cut_of_sums, chunks, coder, ctx, into)

        if plan.cut is None:
            return (yield from many_spans(codec, x, plan.spans, codec_state, ctx, answer))
        rounds = codec.rounds(x, spec, codec_state.child("0"), ctx)
        return (yield from one_span(rounds, answer_at_once))

    def spans(self, codec: Codec, spec: Spec, world: int) -> tuple[Spec, ...]:
        """Return the spans of a bucket, one a chunk."""
        return spec.cut(self.chunks(world), self._grain(codec))

    def _plan(self, codec: Codec, spec: Spec, ctx: RankContext) -> Plan:
        spans = dict(enumerate(self.spans(codec, spec, ctx.world)))
        moves = self.moves_of(codec, spec, ctx)
        owners = tuple(self.owner(j, ctx.world) for j in range(len(spans)))
        if not self._divides(codec, spec, len(spans)):
            return Plan(spans, owners, moves)
        coder = codec.single_packet_coder
        back = coder if self.back is None else self.back.single_packet_coder
        assert coder is not None
        assert back is not None
        steps = tuple(Step.of(move, ctx.group) for move in moves)
        # Only what this rank adds up is encoded span by span.
        own = {j for j, owner in enumerate(owners) if owner == ctx.group_rank}.union(
            *(step.opened for step in steps)
        )
        cut = Cut.of(coder, spans.values())
        cut_of_sums = cut if back == coder else Cut.of(back, spans.values())
        return Plan({j: spans[j] for j in sorted(own)}, owners, (), steps, cut, cut_of_sums)

    def _divides(self, codec: Codec, spec: Spec, chunks: int) -> bool:
        """Return whether all spans are encoded at once: the codec's payload divides, and that of
        the sums."""
        return (
            chunks > 1
            and codec.traits.divides
            and (self.back is None or self.back.traits.divides)
            and max(codec.nbytes(spec) or 0, (self.back or codec).nbytes(spec) or 0)
            <= DIVIDED_BYTES * chunks
        )

    def _grain(self, codec: Codec) -> Grain:
        return codec.traits.grain

    def _sum_coder(
        self, spans: Mapping[int, Spec], state: State, packets: dict[int, Packet], ctx: RankContext
    ) -> SumCoder | None:
        """Return what encodes sums, where it is not the coder of the parts."""
        return None

    @abstractmethod
    def seconds(self, codec: Codec, spec: Spec, ctx: RankContext, link: Link) -> float: ...


class OneCodec(Planned):
    """A planned route whose sums are encoded as their parts are, so that a chunk has one size."""

    def _sizes(self, codec: Codec, spec: Spec, world: int) -> list[int | None]:
        """Return the bytes of a part of each chunk."""
        return [codec.nbytes(span) for span in self.spans(codec, spec, world)]

    def _most(self, codec: Codec, spec: Spec, world: int) -> int:
        """Return the bytes of the largest part; formulas of seconds take all chunks to be alike."""
        return max(largest(codec, span) for span in self.spans(codec, spec, world))

    def sent_nbytes(self, codec: Codec, spec: Spec, ctx: RankContext) -> float | None:
        sizes = self._sizes(codec, spec, ctx.world)
        return (
            None
            if None in sizes
            else self._sent([size or 0 for size in sizes], ctx.group_rank, ctx.world)[0]
        )

    def sent_messages(self, codec: Codec, spec: Spec, ctx: RankContext) -> float | None:
        sizes = self._sizes(codec, spec, ctx.world)
        return (
            None
            if None in sizes or codec.single_packet_coder is None
            else self._sent([size or 0 for size in sizes], ctx.group_rank, ctx.world)[1]
        )

    @abstractmethod
    def _sent(self, sizes: Sequence[int], group_rank: int, world: int) -> tuple[float, float]:
        """Return bytes and messages out of one rank, in closed form, from the bytes of each
        chunk."""


def largest(codec: Codec, spec: Spec) -> int:
    """Return the bytes of a packet of this span; the most that it may have where the data
    decides."""
    exact = codec.nbytes(spec)
    return codec.max_nbytes(spec) if exact is None else exact
