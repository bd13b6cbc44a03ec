"""Sum round a ring: reduce-scatter, then all-gather, each rank exchanging with its two neighbours.

Steps, with K spans, span j owned by rank j:
    1. for K-1 steps: send one span's partial sum to the next rank, receive another from the one
       before, add this rank's own to it
    2. for K-1 steps: send whole sums on
T = 2 (K-1) (α + o + m/(K B)), o the time a message: the least bytes, the most latencies, and no
link but those of the ring. Payloads that add are added unopened: one loss. Others are opened, added
and encoded again at every step: K-1 losses of sums on top of the codec's own, of which feedback
sees only the latter. (Patarasuk & Yuan 2009; Gibiansky 2017 brought it to deep learning.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from thinwire.core import Codec, Link, RankContext, Spec
from thinwire.how._moves import Move
from thinwire.how._moves import ring as ring_moves
from thinwire.how._plan import OneCodec


@dataclass(frozen=True)
class ring(OneCodec):
    """Reduce-scatter and all-gather round a ring; 2 (K-1)/K · m bytes out of each rank.

    Raises:
        StrategyError: (when the strategy is built) the codec leaves entries out and its payloads do
            not add.

    Example:
        >>> from thinwire.what import cast, uniform
        >>> [ring().reencodes(codec, world=4) for codec in (cast(), uniform(8))]
        [0, 3]
    """

    def chunks(self, world: int) -> int:
        return world

    def owner(self, chunk: int, world: int) -> int:
        return chunk

    def moves(self, group_rank: int, world: int) -> tuple[Move, ...]:
        scatter, gather = ring_moves(
            range(world), group_rank, [(j,) for j in range(world)], raw=True
        )
        return (*scatter, *gather)

    def reencodes(self, codec: Codec, world: int) -> int:
        return 0 if codec.traits.summable else world - 1

    def _sent(self, sizes: Sequence[int], group_rank: int, world: int) -> tuple[float, float]:
        """Count all spans but its own to their owners, and all but the next rank's own on the way
        back."""
        own, after = sizes[group_rank], sizes[(group_rank + 1) % world]
        count = sum(size > 0 for size in sizes)
        return (
            (2 * sum(sizes) - own - after, 2 * count - (own > 0) - (after > 0))
            if world > 1
            else (0, 0)
        )

    def seconds(self, codec: Codec, spec: Spec, ctx: RankContext, link: Link) -> float:
        return 2 * (ctx.world - 1) * link.seconds(self._most(codec, spec, ctx.world))
