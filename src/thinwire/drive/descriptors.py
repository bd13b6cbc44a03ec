"""Count the file descriptors that connections need, and refuse a world that has too few."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

from thinwire import env

LAZY_FROM = 33
"""The ranks of a world from which on gloo connects two ranks when they first exchange something. In
a smaller one all pairs are connected at attach, where a rank that is not reached is found at
once."""
OF_A_GROUP = 4
"""Descriptors of a process group of gloo without connections: as measured, torch 2.13."""
_SPARE = 32  # for what the program opens later
_LAZY = "TORCH_GLOO_LAZY_INIT"


@contextmanager
def connecting(world: int) -> Iterator[None]:
    """Make process groups of gloo in the block that connect pairs when they are used, in a large
    world; where the user has set it, as the user has."""
    ours = world >= LAZY_FROM and not env.is_set(_LAZY)
    if ours:
        env.put(_LAZY, "1")
    try:
        yield
    finally:
        if ours:
            env.drop(_LAZY)


def needed(world: int, groups: int, peers: int) -> int:
    """Return the descriptors that process groups of gloo take, each over the whole world.

    Args:
        peers: the other ranks with which this rank exchanges something in each group.

    Example:
        >>> needed(world=8, groups=2, peers=2), needed(world=1000, groups=2, peers=2)
        (22, 12)
    """
    eager = world < LAZY_FROM if not env.is_set(_LAZY) else env.text(_LAZY) != "1"
    return groups * ((world - 1 if eager else min(peers, world - 1)) + OF_A_GROUP)


def refusal(world: int, count: int) -> str | None:
    """Return why this process cannot open so many descriptors more, and what to do, or `None`."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        in_use = len(os.listdir("/proc/self/fd"))
    except OSError:  # no such system
        return None
    whole = in_use + count + _SPARE
    if whole <= limit:
        return None
    how = f"Set `ulimit -n {whole}` before the start, on every host"
    if whole > most:
        how += f", which {most} (`ulimit -Hn`) does not allow: raise nofile in limits.conf first"
    return (
        f"a world of {world} ranks needs {whole} open files in each process, for connections to "
        f"{count} ends beside the {in_use} that are open, and {limit} are allowed. {how}; or take "
        "fewer lanes, or a route that connects fewer ranks, such as hierarchical(…) or ring()"
    )
