"""Find the way between switches, which trunks join to a tree."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

from thinwire.net.parts import Trunk


def path(trunks: Sequence[Trunk], begin: str, end: str) -> list[str]:
    """Return the switches from one to another; empty where there is no way.

    Example:
        >>> path([Trunk(("a", "core")), Trunk(("b", "core"))], "a", "b")
        ['a', 'core', 'b']
    """
    # Breadth first, each switch with the one before it; then back from the end.
    previous: dict[str, str | None] = {begin: None}
    waiting = deque([begin])
    while waiting:
        here = waiting.popleft()
        for trunk in trunks:
            if here in trunk.between:
                there = trunk.between[trunk.between[0] == here]
                if there not in previous:
                    previous[there] = here
                    waiting.append(there)
    switches: list[str] = []
    step = end if end in previous else None
    while step is not None:
        switches.append(step)
        step = previous[step]
    return switches[::-1]


def crossed(trunks: Sequence[Trunk], begin: str, end: str) -> Iterator[tuple[Trunk, float | None]]:
    """Yield each trunk between two switches, and its bits per second in that direction."""
    for one, other in pairwise(path(trunks, begin, end)):
        trunk = next(trunk for trunk in trunks if set(trunk.between) == {one, other})
        forward = trunk.between == (one, other)
        yield trunk, trunk.up_bits_per_s if forward else trunk.down_bits_per_s


def problems(trunks: Sequence[Trunk], switches: Sequence[str]) -> Iterator[str]:
    """Yield why trunks do not make one tree of all switches."""
    # Trunks must be distinct, join two switches, reach all, and be one fewer than switches.
    for one, other in combinations(trunks, 2):
        if set(one.between) == set(other.between):
            yield f"two links join {' and '.join(one.between)}: one is enough"
            return
    if any(len(set(trunk.between)) < 2 for trunk in trunks):
        yield "a link joins two different switches"
        return
    unreached = [switch for switch in switches if not path(trunks, switches[0], switch)]
    if unreached:
        yield f"no link leads from {switches[0]} to {', '.join(unreached)}: join them by a link"
    elif len(trunks) > len(switches) - 1:
        yield (
            f"{len(trunks)} links between {len(switches)} switches make a loop: bridges need a tree"
        )
