"""Gradients, synchronised during backward: the mean is in `.grad` when `backward()` returns.

G = sum over ranks of (w_k / sum w) · g_k, with equal weights the mean over ranks, as in data parallelism.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from thinwire.core import Bucket, Codec, Schedule, State, Target
from thinwire.errors import StrategyError


@dataclass(frozen=True)
class gradients(Target):
    """The gradients of every parameter that trains; a step is a backward pass.

    Args:
        reduce: "mean" over ranks, by their weights; or "sum", which no weight touches.

    Raises:
        StrategyError: another word for `reduce`. With a strategy: a staggered schedule, or a delay that lands in the middle of an
            accumulation.

    Example:
        >>> gradients(reduce="sum").mean
        False
    """

    reduce: Literal["mean", "sum"] = "mean"
    clock: ClassVar[Literal["backward", "step"]] = "backward"

    def __post_init__(self) -> None:
        if self.reduce not in ("mean", "sum"):
            raise StrategyError(f"gradients(reduce={self.reduce!r}): choose 'mean' or 'sum'")

    @property
    def mean(self) -> bool:
        return self.reduce == "mean"

    def refuses(self, when: Schedule, what: Codec) -> str | None:
        if when.fragments > 1:
            return (
                f"Cannot use {when!r} on gradients(): an optimiser step needs every gradient, and fragments land at different steps. "
                "Use deltas(…), or every(n)"
            )
        if when.delay % when.period or (when.delay and when.gap != when.period):
            return (
                f"Cannot use {when!r} on gradients(): its means would land in the middle of an accumulation, when .grad holds a local sum. "
                f"Take a delay that is a multiple of the period {when.period}, and no warm-up of another period"
            )
        return None

    def read(self, bucket: Bucket, state: State, share: float) -> Tensor:
        return bucket.grads()  # scaled by the hooks, as they copied it

    def write(self, bucket: Bucket, total: Tensor, state: State) -> None:
        bucket.set_grads(total)
