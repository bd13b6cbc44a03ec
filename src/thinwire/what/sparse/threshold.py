"""Send every entry with |v| >= t, however many there are.

t is `value` itself, or that share of the span's largest magnitude, or so many times its root mean
square. The payload's size depends on the data, down to no bytes at all. What is left out is below t
in magnitude, so the error is at most t each; use `feedback(…)` so that it is sent later. (Strom
2015, "Scalable distributed DNN training using commodity GPU cloud computing".)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from thinwire.core import RankContext, Spec, State
from thinwire.errors import StrategyError
from thinwire.kernels import fast, memory
from thinwire.what.sparse._picked import Picked


@dataclass(frozen=True)
class threshold(Picked):
    """Every entry of magnitude t or more, and every NaN: a count, indices and values; nothing where
    there are none.

    Places take what is smallest for the count (packed, a bitmap or Elias–Fano), never more than n/8
    bytes.

    Args:
        value: t, in the units of a contribution (a gradient times its weight share), above 0.
        of: `None` takes `value` as it is; "max" and "rms" multiply it by the largest magnitude or
            the root mean square of the span's values, those not finite as zeros, so that t follows
            their scale. Zeros are then never sent.

    Raises:
        StrategyError: t is not positive and finite, or above the largest magnitude; `of` is another
            word.

    Example:
        >>> spec = Spec((), 0, 1024, torch.float32)
        >>> threshold(0.5).nbytes(spec) is None, threshold(0.5).max_nbytes(spec)
        (True, 4232)
        >>> x = torch.tensor([0.0, 3.0, -4.0, 1.0])
        >>> float(threshold(0.5, of="max").bar(x)), round(float(threshold(2.0, of="rms").bar(x)), 3)
        (2.0, 5.099)
    """

    examples: ClassVar[tuple[str, ...]] = (
        'threshold(0.3, of="max")',
        'threshold(1.0, of="rms")',
        "threshold(0.5)",
    )

    value: float
    of: Literal["max", "rms"] | None = None

    def __post_init__(self) -> None:
        reasons = []
        if not 0 < self.value < float("inf"):
            reasons.append(f"threshold(value={self.value}): a threshold is positive and finite")
        if self.of not in (None, "max", "rms"):
            reasons.append(f"threshold(of={self.of!r}): choose 'max', 'rms' or None")
        if self.of == "max" and self.value > 1:
            reasons.append(
                f"threshold(value={self.value}, of='max'): nothing is larger than the largest; "
                "take a share in (0, 1]"
            )
        if reasons:
            raise StrategyError(reasons)

    def bar(self, x: Tensor) -> Tensor:
        """Return t for these values: a scalar of their dtype."""
        if self.of is None or not x.numel():
            return x.new_tensor(self.value)
        x = x if fast.all_finite(x) else torch.where(x.isfinite(), x, torch.zeros_like(x))
        largest = torch.stack(x.aminmax()).abs().amax()
        if self.of == "max":
            return largest * self.value
        unit = torch.where(
            largest > 0, largest, torch.ones_like(largest)
        )  # squares of huge or tiny values would not be numbers
        units = torch.div(x, unit, out=memory.empty_like(x))
        return units.square_().mean().sqrt() * unit * self.value

    def _pick(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> tuple[Tensor, Tensor]:
        picked = fast.above(x, self.bar(x))
        assert not isinstance(picked, int)  # there is no limit
        return picked

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        x = x.to(spec.work)
        return torch.where(x.abs() < self.bar(x), x.abs(), 0).double()
