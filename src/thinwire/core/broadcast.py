"""Send one rank's bytes to all, along a chain or scattered and gathered.

Whichever is faster by the link's formula:

Chain: the bytes go in c segments from rank to rank, segment s+1 one rank behind segment s: T = (c +
K-2) (α + o + M/(c B)), so M/B for large M.
Scattered: the first rank sends each rank a K-th, and each sends it to all others: T = 2 (α + (K-1)
(o + M/(K B))), 2 M/B, but two latencies. (The two regimes of Thakur, Rabenseifner & Gropp 2005,
with the pipelined chain for large messages, Träff, Ripke et al. 2005.)
"""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor

from thinwire.core.route import Exchange, Flight
from thinwire.core.spec import RankContext
from thinwire.net import LOCAL_NETWORK, Link

SMALLEST = 1 << 16  # bytes of a segment
LOCAL_LINK = LOCAL_NETWORK.between(0, 1)


def broadcast(flat: Tensor, ctx: RankContext, link: Link = LOCAL_LINK) -> Flight[Tensor]:
    """Give every rank of the group the bytes of its first rank, in place.

    Args:
        flat: (nbytes,) uint8, contiguous, as long on every rank.
        link: as all ranks know it; it decides how.

    Example:
        >>> import torch
        >>> from thinwire.drive.local import run
        >>> held = [torch.full((2,), rank, dtype=torch.uint8) for rank in range(3)]
        >>> contexts = [RankContext(rank, (0, 1, 2), 0, 0) for rank in range(3)]
        >>> _ = run({ctx.rank: broadcast(held[ctx.rank], ctx) for ctx in contexts})
        >>> [each.tolist() for each in held]
        [[0, 0], [0, 0], [0, 0]]
    """
    segments = segments_of(flat.numel(), ctx.world, link)
    yield from _along(flat, ctx, segments) if segments else _scattered(flat, ctx)
    return flat


def broadcast_seconds(nbytes: int, world: int, link: Link, segments: int) -> float:
    """Return the seconds of a chain of so many segments, in closed form.

    0 segments stand for scattering, of which it is an estimate, as its parts come one by one.
    """
    if world == 1 or not nbytes:
        return 0.0
    if segments:
        return (segments + world - 2) * link.seconds(nbytes / segments)
    return 2 * link.seconds(*[nbytes / world] * (world - 1))


def segments_of(nbytes: int, world: int, link: Link) -> int:
    """Return the number of segments that is fastest on this link; 0 where scattering is."""
    # The c that makes T of the chain least: c = sqrt((K-2) M / (B (α + o))), where dT/dc = 0.
    best = (
        math.sqrt(
            (world - 2) * nbytes / link.rate_bytes_per_s / max(link.delay_s + link.message_s, 1e-9)
        )
        if world > 2
        else 1
    )
    # A segment has at least SMALLEST bytes.
    segments = max(1, min(round(best), nbytes // SMALLEST))
    return (
        segments
        if broadcast_seconds(nbytes, world, link, segments)
        <= broadcast_seconds(nbytes, world, link, 0)
        else 0
    )


def _along(flat: Tensor, ctx: RankContext, segments: int) -> Flight[Tensor]:
    runs, at = _cut(flat, segments), ctx.group_rank
    # Rank p sends segment t-p in round t, and receives the one after it.
    for t in range(max(at - 1, 0), segments + at):
        send = ((ctx.group[at + 1], runs[t - at]),) if t >= at and at + 1 < ctx.world else ()
        come = t - at + 1
        recv = ((ctx.group[at - 1], runs[come].numel()),) if at and come < segments else ()
        if send or recv:
            got = yield Exchange(send, recv)
            if recv:
                runs[come].copy_(got[ctx.group[at - 1]])
    return flat


def _scattered(flat: Tensor, ctx: RankContext) -> Flight[Tensor]:
    """Scatter the bytes of the first rank, and gather them on all others."""
    parts, first = dict(zip(ctx.group, _cut(flat, ctx.world), strict=True)), ctx.group[0]
    # 1. The first rank sends each rank a K-th, and has nothing to receive.
    mine = parts[ctx.rank]
    if ctx.rank == first:
        yield Exchange(tuple((rank, parts[rank]) for rank in ctx.others), ())
    else:
        got = yield Exchange((), ((first, mine.numel()),))
        mine.copy_(got[first])
    # 2. Each sends its part to all but the first, which holds all; in opposite senses round the
    #    group, so that no rank is everybody's first receiver.
    wanted = (
        tuple((rank, parts[rank].numel()) for rank in reversed(ctx.others))
        if ctx.rank != first
        else ()
    )
    got = yield Exchange(tuple((rank, mine) for rank in ctx.others if rank != first), wanted)
    for rank, part in got.items():
        parts[rank].copy_(part)
    return flat


def _cut(flat: Tensor, ways: int) -> list[Tensor]:
    marks = [flat.numel() * j // ways for j in range(ways + 1)]
    return [flat[low:high] for low, high in pairwise(marks)]
