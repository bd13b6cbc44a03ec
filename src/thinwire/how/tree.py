"""Sum each half of the bucket up and down a binary tree of its own, in log2(K) steps.

Both directions of every link are used. A rank that is inside one tree is a leaf of the other (where
K is odd, one rank has a child in each), so no rank has more than two children. Steps, with each
half cut in c segments:
    1. from the leaves up, each rank adds what its children send to its own and sends that to its
       parent; segment s climbs one level while segment s+1 is a level below it
    2. the roots hold the sums, and segments come down the same way
T ≈ 2 (h + c - 1) (α + 2 (o + m/(2 c B))), h = ceil(log2 K) the height: about 2 log2(K) α for small
buckets, 2 m/B for large ones and many segments. A ring has fewer bytes a rank at its busiest and 2
(K-1) α. Payloads that do not add are opened, added and encoded again once a level. (Sanders, Speck
& Träff 2009; Jeaugey 2019, NCCL 2.4.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from thinwire.core import Codec, Link, RankContext, Spec
from thinwire.errors import StrategyError
from thinwire.how._moves import Message, Move
from thinwire.how._plan import OneCodec


@dataclass(frozen=True)
class tree(OneCodec):
    """Reduce up and broadcast down two complementary binary trees.

    Args:
        segments: parts of each half that climb one behind the other. More of them keep more levels
            busy and cost 2 latencies each; about sqrt(h m / (2 α B)) of them are best.

    Raises:
        StrategyError: segments < 1; (when the strategy is built) the codec leaves entries out and
            its payloads do not add.

    Example:
        >>> from thinwire.what import uniform
        >>> [tree().reencodes(uniform(8), world) for world in (2, 4, 8, 64)]
        [1, 2, 3, 6]
    """

    segments: int = 4

    def __post_init__(self) -> None:
        if self.segments < 1:
            raise StrategyError(
                f"tree(segments={self.segments}): half a bucket is at least 1 segment"
            )

    def chunks(self, world: int) -> int:
        return 2 * self.segments

    def owner(self, chunk: int, world: int) -> int:
        return trees(world)[chunk // self.segments].root

    def moves(self, group_rank: int, world: int) -> tuple[Move, ...]:
        if world == 1:
            return ()
        both, c, slots = trees(world), self.segments, turns(world)
        rounds = max(each.height for each in both) + c - 1
        # Both trees' messages of a round make one move: up of step 1, down of step 2.
        up: list[Move] = []
        down: list[Move] = []
        for t in range(rounds):
            to_parent, from_children, to_children, from_parent = _Mail(), _Mail(), _Mail(), _Mail()
            for number, each in enumerate(both):
                slot = slots[number]
                first, parent = number * c, each.parents[group_rank]
                # The segments that leave this rank in this round, upwards and downwards.
                climbs, falls = t - each.heights[group_rank], t - each.depths[group_rank]
                for child in each.children[group_rank]:
                    s = t - each.heights[child]
                    from_children.add(
                        slot[child],
                        child,
                        (first + s,) if 0 <= s < c else (),
                        raw=not each.children[child],
                    )
                    to_children.add(slot[child], child, (first + falls,) if 0 <= falls < c else ())
                if parent is not None:
                    to_parent.add(
                        slot[group_rank], parent, (first + climbs,) if 0 <= climbs < c else ()
                    )
                    from_parent.add(
                        slot[group_rank], parent, (first + falls + 1,) if 0 <= falls + 1 < c else ()
                    )
            up.append(Move(to_parent.messages(whole=False), from_children.messages(whole=False)))
            down.append(Move(to_children.messages(whole=True), from_parent.messages(whole=True)))
        return tuple(move for move in (*up, *down) if move.send or move.recv)

    def reencodes(self, codec: Codec, world: int) -> int:
        return (
            0 if codec.traits.summable or world == 1 else max(each.height for each in trees(world))
        )

    def _sent(self, sizes: Sequence[int], group_rank: int, world: int) -> tuple[float, float]:
        """Count in each tree its half once to the parent and once to each child.

        The two trees never use the same way.
        """
        if world == 1:
            return 0, 0
        ways = [each.ways(group_rank) for each in trees(world)]
        halves = (sizes[: self.segments], sizes[self.segments :])
        nbytes = sum(n * sum(half) for n, half in zip(ways, halves, strict=True))
        return nbytes, sum(
            n * sum(size > 0 for size in half) for n, half in zip(ways, halves, strict=True)
        )

    def seconds(self, codec: Codec, spec: Spec, ctx: RankContext, link: Link) -> float:
        """Return the seconds as if some rank sent two messages in each round and none met.

        The simulator gives 0.5 to 1.4 times that.
        """
        if ctx.world == 1:
            return 0.0
        size = self._most(codec, spec, ctx.world)
        return (
            2
            * (max(each.height for each in trees(ctx.world)) + self.segments - 1)
            * link.seconds(size, size)
        )


@dataclass(frozen=True)
class Tree:
    """A binary tree over the ranks of a group.

    heights: levels below a rank; depths: levels above it.
    """

    parents: tuple[int | None, ...]
    children: tuple[tuple[int, ...], ...]
    heights: tuple[int, ...]
    depths: tuple[int, ...]

    @property
    def root(self) -> int:
        return self.parents.index(None)

    @property
    def height(self) -> int:
        return max(self.heights)

    def ways(self, group_rank: int) -> int:
        """Return how many neighbours a rank has."""
        return len(self.children[group_rank]) + (self.parents[group_rank] is not None)


@lru_cache(maxsize=64)
def trees(world: int) -> tuple[Tree, Tree]:
    """Return two trees of ceil(log2 K) levels below the root.

    A rank has two children in both together, and no child has one parent twice. In the first, a
    rank's level is how many zero bits its number ends in, so all odd ones are leaves. The second is
    its mirror image where the world is even, and the first moved on by one rank where it is odd
    (three ranks have a star).

    Example:
        >>> [each.parents for each in trees(4)]
        [(None, 2, 0, 2), (1, 3, 1, None)]
    """
    # 1. The first tree: levels by trailing zeros of a rank's number.
    first = tuple(_parent(group_rank, world) for group_rank in range(world))
    # 2. The second: the first with each rank renamed.
    second: list[int | None] = [1, None, 1] if world == 3 else [None] * world
    for group_rank, parent in enumerate(first) if world != 3 else ():
        here, above = (_other(at, world) if at is not None else None for at in (group_rank, parent))
        assert here is not None
        second[here] = above
    return _grown(first), _grown(tuple(second))


@lru_cache(maxsize=64)
def turns(world: int) -> tuple[dict[int, int], dict[int, int]]:
    """Return for each tree {rank: 0 or 1}: in which half of a round a rank and its parent exchange.

    No rank has two ways up, or two ways down, in one half, so messages do not meet. (Sanders,
    Speck & Träff 2009: the ways are the edges of a bipartite graph in which no end has more than
    two.)
    """
    # 1. The ends of the graph: a rank's way to its parent, in each tree.
    both = trees(world)
    ways = [
        (t, group_rank)
        for t in (0, 1)
        for group_rank in range(world)
        if both[t].parents[group_rank] is not None
    ]
    # 2. Colour them with two turns: ways that meet in a rank get different ones.
    turn_of: dict[tuple[int, int], int] = {}
    for start in ways:
        turn_of.setdefault(start, 0)
        reached = [start]
        while reached:
            t, group_rank = way = reached.pop()
            for other in ways:
                meet = (
                    other[1] == group_rank
                    or both[other[0]].parents[other[1]] == both[t].parents[group_rank]
                )
                if other != way and meet and other not in turn_of:
                    turn_of[other] = 1 - turn_of[way]
                    reached.append(other)
    first, second = (
        {group_rank: turn for (t, group_rank), turn in turn_of.items() if t == each}
        for each in (0, 1)
    )
    return first, second


def _other(group_rank: int, world: int) -> int:
    return (group_rank + 1) % world if world % 2 else world - 1 - group_rank


def _parent(group_rank: int, world: int) -> int | None:
    if group_rank == 0:
        return None
    # `bit` is the rank's lowest bit that is 1. The parent has it cleared and the next one up set;
    # where that is no rank of the world, it has the bit cleared alone.
    bit = group_rank & -group_rank
    above = (group_rank ^ bit) | (bit << 1)
    return above if above < world else group_rank ^ bit


def _grown(parents: tuple[int | None, ...]) -> Tree:
    """Return the tree of these parents, by rank."""
    ranks = range(len(parents))
    children = tuple(
        tuple(child for child in ranks if parents[child] == group_rank) for group_rank in ranks
    )

    def depth(group_rank: int) -> int:
        above = parents[group_rank]
        return 0 if above is None else 1 + depth(above)

    def height(group_rank: int) -> int:
        return 1 + max(map(height, children[group_rank])) if children[group_rank] else 0

    return Tree(parents, children, tuple(map(height, ranks)), tuple(map(depth, ranks)))


class _Mail:
    """A collection of the chunks of one round by peer, in the order of turns."""

    def __init__(self) -> None:
        self.chunks: dict[int, tuple[int, int, bool]] = {}

    def add(self, turn: int, peer: int, chunks: Sequence[int], *, raw: bool = False) -> None:
        for chunk in chunks:
            assert peer not in self.chunks, "the trees never share a way"
            self.chunks[peer] = (turn, chunk, raw)

    def messages(self, *, whole: bool) -> tuple[Message, ...]:
        ordered = sorted(self.chunks.items(), key=lambda each: each[1][0])
        if whole:
            return tuple(Message(peer, wholes=(chunk,)) for peer, (_, chunk, _) in ordered)
        return tuple(
            Message(peer, parts=(chunk,), raw=frozenset((chunk,) if raw else ()))
            for peer, (_, chunk, raw) in ordered
        )
