"""Carry a bucket by a plan: a route says how many spans there are, who owns each, and how they
move.

`_moves` has the words of a plan, `_sums` adds up what moves.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
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
)
from thinwire.how._moves import Move
from thinwire.how._rounds import Totals, many_spans, targets
from thinwire.how._sums import SumCoder, totals


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

    def init(self, codec: Codec, spec: Spec, ctx: RankContext) -> State:
        spans = self.spans(codec, spec, ctx.world)
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
        spans = self.spans(codec, spec, ctx.world)
        moves = self.moves_of(codec, spec, ctx)
        owners = [self.owner(j, ctx.world) for j in range(len(spans))]

        # 2. Each round of the codec moves one packet of each span by the whole plan.
        def answer(packets: dict[int, Packet]) -> Totals:
            sum_coder = self._sum_coder(spans, state, packets, ctx)
            return totals(
                moves,
                owners,
                packets,
                ctx,
                self.unopened and codec.traits.summable,
                sum_coder,
                targets(codec, x, spans),
            )

        return (yield from many_spans(codec, x, spans, state.child("codec"), ctx, answer))

    def spans(self, codec: Codec, spec: Spec, world: int) -> tuple[Spec, ...]:
        """Return the spans of a bucket, one a chunk."""
        return spec.cut(self.chunks(world), self._grain(codec))

    def _grain(self, codec: Codec) -> Grain:
        return codec.traits.grain

    def _sum_coder(
        self, spans: Sequence[Spec], state: State, packets: dict[int, Packet], ctx: RankContext
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
