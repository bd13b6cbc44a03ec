"""Count the bytes that a strategy sends, in closed form, on the buckets that `attach` would make.

In each period every bucket flies once, so bytes a step are those of all flights over the period; a
warm-up is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinwire.planner.memory import buckets_of
from thinwire.planner.shape import Named, Shape

if TYPE_CHECKING:
    from thinwire.core import Spec
    from thinwire.strategy import Strategy


@dataclass(frozen=True)
class Sent:
    """Hold what a strategy sends for each parameter and step, the mean over ranks.

    `None` where the data decides.

    between_bytes: of these, what crosses from node to node, where the route knows nodes;
    dense_bytes: of a float32 all-reduce at every step.
    """

    sent_bytes: float | None
    between_bytes: float | None
    dense_bytes: float
    period: int

    @property
    def fewer(self) -> float | None:
        """Return how many times less is sent than by a float32 all-reduce at every step."""
        return self.dense_bytes / self.sent_bytes if self.sent_bytes else None


def sent(strategy: Strategy, shape: Shape | Named, world: int) -> Sent:
    """Count what a strategy sends for a model of a shape, once any warm-up is over.

    Raises:
        StrategyError: the route cannot serve a world of this size.
        AttachError: fewer matrices than the schedule has fragments.

    Example:
        >>> from thinwire import recipes
        >>> sent(recipes.dense(), Shape(64, 2), world=2)
        Sent(sent_bytes=4.0, between_bytes=None, dense_bytes=4.0, period=1)
    """
    from thinwire.core import allreduce_nbytes
    from thinwire.how import hierarchical

    strategy.how.groups(world)
    specs, period = (
        [bucket.spec for bucket in buckets_of(strategy, shape.module())],
        strategy.when.period,
    )
    scale = shape.parameters * period
    # Bytes a parameter and step: all flights of a period, over parameters and steps.
    whole = _flight_bytes(strategy, specs, world)
    between = None
    if (
        isinstance(strategy.how, hierarchical)
        and isinstance(strategy.how.node, int)
        and whole is not None
    ):
        # A world of one node sends all but what goes between nodes.
        inside = _flight_bytes(strategy, specs, strategy.how.node)
        between = (whole - inside) / scale if inside is not None else None
    dense = allreduce_nbytes(4 * shape.parameters, world) / shape.parameters
    return Sent(whole / scale if whole is not None else None, between, dense, period)


def _flight_bytes(strategy: Strategy, specs: Sequence[Spec], world: int) -> float | None:
    """Count the bytes of one flight of every bucket, the mean over ranks."""
    from thinwire.core import RankContext

    total, group = 0.0, tuple(range(world))
    kinds = [(spec.dtype, *((part.shape, part.role) for part in spec.parts)) for spec in specs]
    first = dict(zip(kinds, specs, strict=True))
    # Most layers are alike: what they send is counted once.
    for kind, times in Counter(kinds).items():
        for rank in group:
            nbytes = strategy.how.sent_nbytes(
                strategy.what, first[kind], RankContext(rank, group, 0, 0)
            )
            if nbytes is None:
                return None
            total += nbytes * times
    return total / world
