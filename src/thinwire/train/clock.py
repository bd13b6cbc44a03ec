"""How a strategy's schedule shapes a run: which batches make one optimiser step, and where a run may end.

A step is one batch, forward and backward. On gradients, `every(8)` gathers eight of them for one optimiser step; on deltas and
parameters each batch has its own, and the schedule counts those.
"""

from __future__ import annotations

from collections.abc import Iterator

from thinwire.errors import StrategyError
from thinwire.strategy import Strategy


def rounds(strategy: Strategy, steps: int, buckets: int) -> Iterator[range]:
    """The steps of each optimiser step, in order.

    Example:
        >>> from thinwire import recipes
        >>> [list(round) for round in rounds(recipes.accumulation(2), steps=4, buckets=1)]
        [[0, 1], [2, 3]]
        >>> [list(round) for round in rounds(recipes.local_sgd(2), steps=4, buckets=1)]
        [[0], [1], [2], [3]]
    """
    first = 0
    for step in range(steps):
        if strategy.on.clock == "step" or strategy.when.tick(step, buckets).launch:
            yield range(first, step + 1)
            first = step + 1


def landing(strategy: Strategy, steps: int, buckets: int) -> int:
    """The least number of steps, `steps` or more, after which a mean lands: a run that ends there wastes none of them.

    Raises:
        StrategyError: it is more than twice `steps`, which nobody would call rounding.

    Example:
        >>> from thinwire import recipes
        >>> [landing(recipe, steps=60, buckets=1) for recipe in (recipes.dense(), recipes.local_sgd(16), recipes.diloco(100))]
        [60, 64, 100]
    """
    for end in range(steps, 2 * steps + 1):
        if strategy.when.tick(end - 1, buckets).land:
            return end
    raise StrategyError(
        f"{strategy.when!r} lands nothing from step {steps} to step {2 * steps}: train for more steps, or take a shorter period than "
        f"{strategy.when.period}"
    )
