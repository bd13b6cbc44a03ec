"""Order slices on the wire by when the next forward pass needs them: first needed, first sent.

A bucket is full when backward has reached it, the last layer's first; the forward pass begins with
the first layer. Slices that are on their way are not stopped. Waiting slices are taken by need
(ByteScheduler, Peng et al. 2019, SOSP; P3, Jayarajan et al. 2019, arXiv:1905.03960).

Differs from the papers: there the choice is made as messages leave. Here every rank must put the
same flights on a lane in the same order. So the order is made beforehand, from measured times that
ranks have exchanged, and holds until they are exchanged again.
"""

from __future__ import annotations

from collections.abc import Sequence

from thinwire.core import Stage
from thinwire.engine.buckets import FlatBucket


def by_index(buckets: Sequence[FlatBucket]) -> tuple[int, ...]:
    """Order slices as buckets fill: return each bucket's number, once for each of its slices."""
    return tuple(bucket.index for bucket in buckets for _ in bucket.slices)


def by_need(
    full: Sequence[float], takes: Sequence[float], slices: Sequence[int], needed: Sequence[int]
) -> tuple[int, ...]:
    """Order slices for one wire: whenever it is free, send a slice of the full bucket needed first.

    This is a list schedule; a slice that has begun is not stopped.

    Args:
        full: when each bucket is full, in seconds.
        takes: how long the wire is busy with one slice of it, in seconds.
        slices: how many slices it has.
        needed: its position in the forward pass; 0 is needed first.

    Returns:
        The buckets' numbers, each as often as it has slices.

    Example:
        >>> by_need(full=[0.0, 2.0], takes=[1.0, 1.0], slices=[4, 1], needed=[1, 0])
        (0, 0, 1, 0, 0)
    """
    left, now, order = list(slices), 0.0, []
    # Simulate the wire: `now` is the time at which it is free again, `left` the slices to send.
    while waiting := [index for index, count in enumerate(left) if count]:
        ready = [index for index in waiting if full[index] <= now]
        # Nothing is full yet: the wire idles until the next bucket is.
        if not ready:
            now = min(full[index] for index in waiting)
            continue
        # The index breaks ties, so that all ranks get the same order.
        first = min(ready, key=lambda index: (needed[index], index))
        order.append(first)
        left[first] -= 1
        now += takes[first]
    return tuple(order)


def busy(stages: Sequence[Stage]) -> float:
    """Return how long at least one flight was at work, in seconds: the union of all stages."""
    total, end = 0.0, float("-inf")
    # A sweep over intervals by their begin: count only what lies beyond the latest end so far.
    for stage in sorted(stages, key=lambda stage: stage.begin):
        total += max(stage.end - max(stage.begin, end), 0.0)
        end = max(end, stage.end)
    return total
