"""Relate a strategy's schedule to a run: which batches make one optimiser step, and where a run may
end.

A step is one batch of each rank, forward and backward. On gradients the schedule counts batches:
`every(8)` gathers eight of them for one optimiser step. On deltas and parameters it counts
optimiser steps, each of `accumulate` batches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from thinwire.errors import StrategyError
from thinwire.strategy import Strategy
from thinwire.when import every, warmup


def accumulating(strategy: Strategy, batches: int) -> Strategy:
    """Return the strategy for optimiser steps of several batches: on gradients with a stretched
    schedule, else unchanged.

    Raises:
        StrategyError: on gradients, a schedule that is not `every(1)`, or `every(1)` after a dense
            warm-up of none.

    Example:
        >>> from thinwire import recipes
        >>> accumulating(recipes.powersgd(), 4).when
        every(n=4)
    """
    # On local steps the schedule counts optimiser steps already, whatever their batches.
    if batches == 1 or strategy.on.clock == "step":
        return strategy
    if strategy.when == every(1):
        return dataclasses.replace(strategy, when=every(batches))
    if isinstance(strategy.when, warmup) and strategy.when.inner == every(1):
        raise StrategyError(
            f"--accumulate {batches} with {strategy.when!r}: its dense steps take one batch each, "
            "so steps would be of two sizes; "
            f"take a recipe without a dense start (start=0)"
        )
    raise StrategyError(
        f"--accumulate {batches} with {strategy.when!r} on gradients: the schedule counts "
        f"batches; write {batches} into it"
    )


def rounds(
    strategy: Strategy, steps: int, buckets: int, accumulate: int = 1, first: int = 0
) -> Iterator[range]:
    """Yield the steps of each optimiser step, in order.

    Args:
        strategy: as `accumulating` made it.
        steps: where the run ends.
        buckets: how many there are.
        accumulate: batches to an optimiser step.
        first: where it begins, after a whole optimiser step.

    Example:
        >>> from thinwire import recipes
        >>> [list(round) for round in rounds(recipes.accumulation(2), steps=4, buckets=1)]
        [[0, 1], [2, 3]]
        >>> [list(round) for round in rounds(recipes.local_sgd(2), steps=4, buckets=1)]
        [[0], [1], [2], [3]]
    """
    for step in range(first, steps):
        whole = (
            (step + 1) % accumulate == 0
            if strategy.on.clock == "step"
            else strategy.when.tick(step, buckets).launch
        )
        if whole:
            yield range(first, step + 1)
            first = step + 1


def landing(strategy: Strategy, steps: int, buckets: int, accumulate: int = 1) -> int:
    """Return the smallest number of steps, at least `steps`, after which a mean lands and every
    bucket has had one.

    A run that ends there wastes no local step. Of fragments, which land in turn, it wastes as few
    as possible.

    Raises:
        StrategyError: it is more than twice `steps`, which nobody would call rounding.

    Example:
        >>> from thinwire import recipes
        >>> chosen = recipes.dense(), recipes.local_sgd(16), recipes.diloco(100)
        >>> [landing(recipe, steps=60, buckets=1) for recipe in chosen]
        [60, 64, 100]

        The first half of the fragments lands at step 50:

        >>> landing(recipes.streaming_diloco(period=100, fragments=2), steps=60, buckets=2)
        105
    """
    size = accumulate if strategy.on.clock == "step" else 1  # batches to a count of the schedule
    # Play the ticks from the start, and stop at the first end that has a landing and every bucket.
    least, landed = -(-steps // size), set[int]()
    for end in range(1, 2 * steps // size + 1):
        if end < least and len(landed) == buckets:
            continue  # only the end is left to find
        now = strategy.when.tick(end - 1, buckets).land
        landed.update(now)
        if end >= least and now and len(landed) == buckets:
            return end * size
    # What never lands, for the error: nothing, some buckets, or nothing late enough.
    never = (
        ""
        if not landed
        else f" of {buckets - len(landed)} of {buckets} buckets"
        if len(landed) < buckets
        else f" from step {steps}"
    )
    raise StrategyError(
        f"{strategy.when!r} lands nothing{never} to step {2 * steps}: train for more steps, or "
        "take a shorter period than "
        f"{strategy.when.period}"
    )
