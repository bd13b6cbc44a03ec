"""Describe who sends which spans to whom, in which order, as seen from one rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Chunks = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Message:
    """A message to or from one rank of the group.

    parts, wholes: the chunks whose parts, or whose sums, are in it. raw: of the parts, those that
    hold one rank's packet as it was first encoded.
    """

    peer: int
    parts: Chunks = ()
    wholes: Chunks = ()
    raw: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Move:
    """An exchange of one rank: what it sends and receives at once."""

    send: tuple[Message, ...] = ()
    recv: tuple[Message, ...] = ()


def ring(
    order: Sequence[int], index: int, blocks: Sequence[Chunks], *, raw: bool
) -> tuple[list[Move], list[Move]]:
    """Return the moves of rank `order[index]` on a ring: reduce-scatter, then all-gather.

    Args:
        order: ranks of the group, round the ring.
        index: after the reduce-scatter this rank has the sum of block `index`.
        blocks: the chunks of each block.
        raw: what it starts from is as ranks first encoded it.
    """
    # In step s the partial sum of a block moves one rank on. Block b starts at rank b + 1, is added
    # to at each rank, and is whole at rank b after n - 1 steps.
    n = len(order)
    after, before = order[(index + 1) % n], order[index - 1]
    scatter = [
        Move(
            (Message(after, parts=blocks[(index - 1 - s) % n]),),
            (
                Message(
                    before,
                    parts=blocks[(index - 2 - s) % n],
                    raw=frozenset(blocks[(index - 2 - s) % n] if raw and not s else ()),
                ),
            ),
        )
        for s in range(n - 1)
    ]
    # Whole sums go the same way round: first this rank's own block, then what has just come.
    gather = [
        Move(
            (Message(after, wholes=blocks[(index - s) % n]),),
            (Message(before, wholes=blocks[(index - 1 - s) % n]),),
        )
        for s in range(n - 1)
    ]
    return scatter, gather
