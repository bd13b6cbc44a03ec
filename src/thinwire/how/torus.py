"""Sum on a grid: reduce-scatter along rows, all-reduce along columns, all-gather along rows.

Rank r stands in column r mod x of row r div x, so ranks that are neighbours by number (those of a
host) share a row. Steps, with x y spans:
    1. round each row of x ranks: reduce-scatter; each rank then holds its row's sum of an x-th of
       the bucket
    2. round each column of y ranks: reduce-scatter and all-gather of that x-th
    3. round each row: all-gather
T = 2 (x-1) (α + o + m/(x B)) + 2 (y-1) (α + o + m/(x y B)): a ring's bytes in 2 (x + y - 2) steps
instead of 2 (x y - 1), and only an x-th of the bucket goes from row to row. Payloads that do not
add are encoded again x + y - 2 times. (Mikami et al. 2018, arXiv:1811.05233; Ying et al. 2018,
arXiv:1811.06992.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from thinwire.core import Codec, Link, RankContext, Ranks, Spec
from thinwire.errors import StrategyError
from thinwire.how._moves import Move, ring
from thinwire.how._plan import OneCodec


@dataclass(frozen=True)
class torus(OneCodec):
    """Sum by rings along the rows and columns of a grid; 2 (K-1)/K · m bytes out of each rank.

    Args:
        x: ranks a row; y: rows.

    Raises:
        StrategyError: x or y below 1; (when the strategy is built) the codec leaves entries out and
            its payloads do not add. At attach: a world of another size than x · y.

    Example:
        >>> from thinwire.what import uniform
        >>> torus(4, 2).reencodes(uniform(8), world=8)
        4
    """

    x: int
    y: int

    def __post_init__(self) -> None:
        if self.x < 1 or self.y < 1:
            raise StrategyError(
                f"torus(x={self.x}, y={self.y}): a row has at least 1 rank, and there is at least "
                "1 row"
            )

    def groups(self, world: int) -> tuple[Ranks, ...]:
        if world != self.x * self.y:
            near = " or ".join(
                f"torus({x}, {world // x})"
                for x in range(1, world + 1)
                if world % x == 0 and 1 < x < world
            )
            raise StrategyError(
                f"torus(x={self.x}, y={self.y}): {self.x} by {self.y} are {self.x * self.y} "
                f"ranks, and there are {world}. "
                f"Take {near or 'ring()'}"
            )
        return ()

    def chunks(self, world: int) -> int:
        return world

    def owner(self, chunk: int, world: int) -> int:
        return chunk % self.y * self.x + chunk // self.y

    def moves(self, group_rank: int, world: int) -> tuple[Move, ...]:
        self.groups(world)
        column, row = group_rank % self.x, group_rank // self.x
        among_row = [row * self.x + i for i in range(self.x)]
        among_column = [j * self.x + column for j in range(self.y)]
        blocks = [
            tuple(range(i * self.y, (i + 1) * self.y)) for i in range(self.x)
        ]  # block i: what column i holds after step 1
        scatter, gather = ring(among_row, column, blocks, raw=True)
        inner = ring(
            among_column, row, [(column * self.y + j,) for j in range(self.y)], raw=self.x == 1
        )
        return (*scatter, *inner[0], *inner[1], *gather)

    def reencodes(self, codec: Codec, world: int) -> int:
        return 0 if codec.traits.summable else self.x + self.y - 2

    def _sent(self, sizes: Sequence[int], group_rank: int, world: int) -> tuple[float, float]:
        """Count a ring of x blocks along the row, and one of y spans along the column."""
        self.groups(world)
        column, row = group_rank % self.x, group_rank // self.x
        blocks = [sum(sizes[i * self.y : (i + 1) * self.y]) for i in range(self.x)]
        along = (_ring(blocks, column), _ring(sizes[column * self.y : (column + 1) * self.y], row))
        return sum(nbytes for nbytes, _ in along), sum(messages for _, messages in along)

    def seconds(self, codec: Codec, spec: Spec, ctx: RankContext, link: Link) -> float:
        size = self._most(codec, spec, ctx.world)
        return 2 * (self.x - 1) * link.seconds(size * self.y) + 2 * (self.y - 1) * link.seconds(
            size
        )


def _ring(sizes: Sequence[int], at: int) -> tuple[int, int]:
    """Return bytes and messages out of one rank of a ring.

    It sends all blocks but its own, and all but the next rank's own.
    """
    left = [size for j, size in enumerate(sizes) if j != at] + [
        size for j, size in enumerate(sizes) if j != (at + 1) % len(sizes)
    ]
    return (sum(left), sum(size > 0 for size in left)) if len(sizes) > 1 else (0, 0)
