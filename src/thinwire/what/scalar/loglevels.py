"""Quantise values on a logarithmic grid: levels ±s · r^i, evenly spaced in log|v|.

Per block of B values s = max|v|; the payload is m scales (one a block) and n codes of b bits.
Steps:
    1. s of each block.
    2. |v| / s to the nearest of M levels from `smallest` to 1, or to one of its two neighbours at
       random, so that E[Q(v)] = v.
    3. the sign in the code's highest bit, the level's place below it; codes packed.
With M levels r = smallest^(1 / (M - 1)), and the relative error of what lies between two of them is
at most (1 - r) / (1 + r).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from thinwire.errors import StrategyError
from thinwire.kernels import reference
from thinwire.what.scalar._levels import Levels, wrong_block, wrong_grid, wrong_rounding


@dataclass(frozen=True)
class loglevels(Levels):
    """b-bit values on a logarithmic grid, one scale a block: ceil(n·b/8) + 4·ceil(n/B) bytes (8·
    for float64 buckets).

    Args:
        bits: 2 to 8; on the grid "tread" 3 to 8.
        smallest: the smallest level that is not zero, as a share of the block's largest magnitude,
            in (0, 1).
        block: values that share a scale; 0 means the whole span.
        rounding: "nearest", or "stochastic" (unbiased, larger error; drawn by (seed, step, key,
            rank)).
        grid: "tread" has a level at zero and M = 2^(b-1) - 1 magnitudes; "rise" has none and M =
            2^(b-1), for what has no small values.

    Raises:
        StrategyError: an argument outside the above.

    A block that holds a NaN or an infinity decodes to NaN throughout.

    Example:
        >>> from thinwire.core import Spec
        >>> loglevels(bits=3, block=256).nbytes(Spec((), 0, 1024, torch.float32))
        400

    Source: logarithmic data representation, Miyashita et al. 2016, arXiv:1603.01025; `loglevels(4,
    1/64, rounding="stochastic")` is natural dithering (Horváth et al. 2019, arXiv:1905.10988) with
    7 levels. Differs from both: any ratio between levels, not 2; a scale a block, its largest
    magnitude, not a vector's norm.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "loglevels(8, block=0)",
        'loglevels(2, 0.2, grid="rise")',
        'loglevels(3, 0.1, block=12, rounding="stochastic")',
        'loglevels(6, 0.001, rounding="stochastic", grid="rise")',
        "loglevels()",
    )

    bits: int = 4
    smallest: float = 0.05
    block: int = 256
    rounding: reference.Rounding = "nearest"
    grid: reference.Grid = "tread"

    def __post_init__(self) -> None:
        reasons = [
            *wrong_block("loglevels", self.block),
            *wrong_rounding("loglevels", self.rounding),
            *wrong_grid("loglevels", self.bits, self.grid),
        ]
        if not 1e-30 <= self.smallest < 1:
            reasons.append(
                f"loglevels(smallest={self.smallest}): a share of the largest magnitude lies "
                "between 1e-30 and 1"
            )
        if reasons:
            raise StrategyError(reasons)

    @property
    def _bits(self) -> int:
        return self.bits

    def _values(self) -> Tensor:
        # From the largest level down by equal ratios to `smallest` of it; zero takes one code of
        # "tread".
        zero = self.grid == "tread"
        count = 2 ** (self.bits - 1) - zero
        exponents = torch.linspace(1, 0, count, dtype=torch.float64)
        magnitudes = torch.cat(
            [torch.zeros(int(zero), dtype=torch.float64), self.smallest**exponents]
        )
        return torch.cat([magnitudes, -magnitudes])
