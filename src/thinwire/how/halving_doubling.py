"""Sum by recursive halving, then recursive doubling: a ring's bytes in 2 log2(K) steps.

Steps, with P the largest power of two that is at most K:
    0. rank P+i sends all it has to rank i, which adds it to its own (only where K is no power of
       two)
    1. for b = P/2, P/4, … 1: swap with the rank that differs in bit b; give it its half of what is
       left, add its part of the other half
    2. for b = 1, 2, … P/2: swap whole sums with the same rank
    3. rank i sends the sums to rank P+i
T = 2 log2(P) (α + o) + 2 (P-1)/P · m/B, and where K > P up to 2 (α + o) + (3 - 1/P) m/B more, since
the halves of ranks that need not wait for step 0 meet what step 0 sends; o is the time a message.
Payloads that do not add are encoded again at each of log2(P) halvings (one more where K > P), not
K-1 times as on a ring. (Thakur, Rabenseifner & Gropp 2005, "Optimization of collective
communication operations in MPICH".)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from thinwire.core import Codec, Link, RankContext, Spec
from thinwire.how._moves import Message, Move
from thinwire.how._plan import OneCodec


@dataclass(frozen=True)
class halving_doubling(OneCodec):
    """Halve and double recursively on any number of ranks.

    2 (P-1)/P · m bytes leave each of P ranks, P a power of two.

    Raises:
        StrategyError: (when the strategy is built) the codec leaves entries out and its payloads do
            not add.

    Example:
        >>> from thinwire.what import uniform
        >>> [halving_doubling().reencodes(uniform(8), world) for world in (2, 4, 5, 64)]
        [1, 2, 3, 6]
    """

    def chunks(self, world: int) -> int:
        return power(world)

    def owner(self, chunk: int, world: int) -> int:
        return chunk

    def moves(self, group_rank: int, world: int) -> tuple[Move, ...]:
        core = power(world)
        everything = tuple(range(core))
        raw = frozenset(everything)
        # 0. Ranks beyond the power of two hand all they have to a partner, and get the sums back.
        if group_rank >= core:
            at = group_rank - core
            return (
                Move(send=(Message(at, parts=everything),)),
                Move(recv=(Message(at, wholes=everything),)),
            )
        folded = group_rank + core < world
        moves = (
            [Move(recv=(Message(group_rank + core, parts=everything, raw=raw),))] if folded else []
        )

        # 1. Halve: swap with the rank that differs in bit b; `left` is what this rank still sums.
        left, bit = everything, core // 2
        while bit:
            peer = group_rank ^ bit
            keep = tuple(c for c in left if c & bit == group_rank & bit)
            give = tuple(c for c in left if c & bit != group_rank & bit)
            first = bit == core // 2 and peer + core >= world
            moves.append(
                Move(
                    (Message(peer, parts=give),),
                    (Message(peer, parts=keep, raw=raw if first else frozenset()),),
                )
            )
            left, bit = keep, bit // 2

        # 2. Double: swap whole sums with the same ranks, in reverse.
        bit = 1
        while bit < core:
            peer = group_rank ^ bit
            theirs = tuple(c ^ bit for c in left)
            moves.append(Move((Message(peer, wholes=left),), (Message(peer, wholes=theirs),)))
            left, bit = tuple(sorted((*left, *theirs))), bit * 2

        # 3. Give the sums to the partner beyond the power of two.
        if folded:
            moves.append(Move(send=(Message(group_rank + core, wholes=everything),)))
        return tuple(moves)

    def reencodes(self, codec: Codec, world: int) -> int:
        core = power(world)
        return 0 if codec.traits.summable else core.bit_length() - 1 + (world > core)

    def _sent(self, sizes: Sequence[int], group_rank: int, world: int) -> tuple[float, float]:
        """Count all but its own span on the way in; then its own, its pair's two, its four's four,
        …"""
        core, whole = power(world), sum(sizes)
        # 0. Ranks beyond the power of two hand all they have to a partner, and get the sums back.
        if group_rank >= core:
            return whole, whole > 0
        folded, nbytes, messages, bit = group_rank + core < world, whole - sizes[group_rank], 0, 1
        while bit < core:
            first = group_rank & ~(bit - 1)  # of the `bit` spans whose sums it has
            own, theirs = (
                sum(sizes[first : first + bit]),
                sum(sizes[first ^ bit : (first ^ bit) + bit]),
            )
            nbytes += own
            messages += (own > 0) + (theirs > 0)
            bit *= 2
        return nbytes + folded * whole, messages + (folded and whole > 0)

    def seconds(self, codec: Codec, spec: Spec, ctx: RankContext, link: Link) -> float:
        """Return the seconds; at the most where K is no power of two.

        Ranks that do not wait for step 0 send their halves to those that do.
        """
        core, size = power(ctx.world), self._most(codec, spec, ctx.world)
        steps = sum(link.seconds(size * 2**step) for step in range(core.bit_length() - 1))
        fold = (
            link.seconds(size * (2 * core - 1)) + link.seconds(size * core)
            if ctx.world > core
            else 0.0
        )
        return 2 * steps + fold


def power(world: int) -> int:
    """Return the largest power of two that is at most `world`."""
    return 1 << (world.bit_length() - 1)
