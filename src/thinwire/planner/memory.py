"""Count what a strategy keeps in memory, on tensors that have a shape and no storage: nothing is
allocated, whatever the model."""

from __future__ import annotations

import inspect
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from thinwire.core import Schedule
    from thinwire.engine.buckets import FlatBucket
    from thinwire.strategy import Strategy

BUFFERS, AIR = "gradient buffers", "in the air"


def buckets_of(strategy: Strategy, model: nn.Module) -> list[FlatBucket]:
    """Return the buckets that `attach` would make."""
    from thinwire.engine import attach
    from thinwire.engine.buckets import plan

    bucket_bytes = inspect.signature(attach).parameters["bucket_bytes"].default
    return plan(model, bucket_bytes, strategy.when, wide=strategy.on.clock == "step")


def kept_bytes(strategy: Strategy, model: nn.Module, world: int) -> dict[str, int]:
    """Count the bytes that rank 0 keeps beside parameters, gradients and the loop's own optimiser,
    by what they are.

    Anchors, outer state and averages of the target; residuals and warm starts of codec and route;
    flat gradient buffers, one for each flight of a bucket that may be in the air, but one, which
    has the gradients themselves; on local steps the contributions in the air.

    Args:
        strategy: the strategy.
        model: on the meta device, so that nothing is allocated.
        world: ranks.

    Example:
        >>> import torch
        >>> from thinwire import recipes
        >>> model = torch.nn.Linear(100, 100, bias=False, device="meta")
        >>> kept_bytes(recipes.diloco(), model, world=4)
        {'anchor': 40000, 'velocity': 40000, 'in the air': 40000}
    """
    from thinwire.core import RankContext

    nbytes: Counter[str] = Counter()
    buckets = buckets_of(strategy, model)
    # Cut each bucket as `attach` would, and add up the states of target, codec and route.
    for bucket in buckets:
        bucket.world, bucket.when = world, strategy.when
        bucket.cut(
            None, strategy.what, strategy.how, RankContext(0, tuple(range(world)), 0, 0), 1, 0
        )
        states = [strategy.on.init(bucket), *(part.state for part in bucket.slices)]
        for state in states:
            for path, leaf in state.walk():
                nbytes[path.rpartition("/")[2]] += leaf.value.numel() * leaf.value.dtype.itemsize
    # Then gradients' buffers, one a flight beside that of the gradients; on local steps the
    # contributions in flight.
    sizes = [bucket.spec.numel * bucket.spec.dtype.itemsize for bucket in buckets]
    if strategy.on.clock == "backward":
        nbytes[BUFFERS] = (strategy.when.depth - 1) * sum(sizes)
    else:
        nbytes[AIR] = _most_in_the_air(strategy.when, sizes)
        if getattr(strategy.on, "eager", False):
            nbytes["ahead"] = nbytes[AIR]
    return dict(nbytes)


def _most_in_the_air(when: Schedule, sizes: list[int]) -> int:
    """Return the most bytes of buckets in the air at once, once the schedule has become steady."""
    flying: Counter[int] = Counter()
    most = 0
    for step in range(when.steady_from, when.steady_from + 2 * when.period + when.delay):
        tick = when.tick(step, len(sizes))
        flying.update(tick.launch)
        most = max(most, sum(sizes[index] * count for index, count in flying.items() if count > 0))
        flying.subtract(tick.land)
    return most


def on_host(strategy: Strategy) -> bool:
    """Return whether the target's state is in the host's memory."""
    return getattr(strategy.on, "device", None) == "cpu"
