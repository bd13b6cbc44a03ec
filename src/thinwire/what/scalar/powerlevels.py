"""Quantise values on a power-law grid: levels ±s · (i / M)^p, between a uniform grid (p = 1) and a
logarithmic one.

Per block of B values s = max|v|; the payload is m scales (one a block) and n codes of b bits.
Steps:
    1. s of each block.
    2. |v| / s to the nearest of the levels (i / M)^p, or to one of its two neighbours at random, so
       that E[Q(v)] = v.
    3. the sign in the code's highest bit, i below it; codes packed.
The gap at v is about p/M · s · (|v|/s)^(1 - 1/p): it shrinks towards zero, where most values lie,
but more slowly than that of a logarithmic grid, which has wider gaps at the top for it. With p = 2
and 8 bits it is 0.016 s at the top, 0.00006 s at zero.
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
class powerlevels(Levels):
    """b-bit values on a power-law grid, one scale a block: ceil(n·b/8) + 4·ceil(n/B) bytes (8· for
    float64 buckets).

    Args:
        bits: 2 to 8; on the grid "tread" 3 to 8.
        power: p, 1 to 8: 1 is a uniform grid; the heavier the tails and the longer the blocks, the
            larger.
        block: values that share a scale; 0 means the whole span.
        rounding: "nearest", or "stochastic" (unbiased, larger error; drawn by (seed, step, key,
            rank)).
        grid: "tread" has a level at zero and M = 2^(b-1) - 1 magnitudes above it; "rise" has none,
            and magnitudes ((i - 1/2) / M)^p of M = 2^(b-1) - 1/2, for what has no small values.

    Raises:
        StrategyError: an argument outside the above.

    A block that holds a NaN or an infinity decodes to NaN throughout.

    Example:
        >>> from thinwire.core import Spec
        >>> powerlevels(bits=8, power=2.0, block=256).nbytes(Spec((), 0, 1024, torch.float32))
        1040

    Source: PowerQuant, Yvinec et al. 2023, arXiv:2301.09858; companding, Panter and Dite 1951: the
    best gaps go as the density to the power -1/3. Differs from PowerQuant: p is chosen by hand, not
    searched; a scale a block.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "powerlevels(8, 3.0, 0)",
        'powerlevels(2, grid="rise")',
        'powerlevels(3, 1.5, 12, "stochastic")',
        'powerlevels(6, 4.0, 32, "stochastic", "rise")',
        "powerlevels(4)",
    )

    bits: int = 8
    power: float = 2.0
    block: int = 256
    rounding: reference.Rounding = "nearest"
    grid: reference.Grid = "tread"

    def __post_init__(self) -> None:
        reasons = [
            *wrong_block("powerlevels", self.block),
            *wrong_rounding("powerlevels", self.rounding),
            *wrong_grid("powerlevels", self.bits, self.grid),
        ]
        if not 1 <= self.power <= 8:
            reasons.append(
                f"powerlevels(power={self.power}): choose 1 to 8; below 1 the gaps would be "
                "widest where most values lie"
            )
        if reasons:
            raise StrategyError(reasons)

    @property
    def _bits(self) -> int:
        return self.bits

    def _values(self) -> Tensor:
        levels = torch.arange(2 ** (self.bits - 1), dtype=torch.float64) + (
            0.5 if self.grid == "rise" else 0.0
        )
        magnitudes = (levels / levels[-1]) ** self.power
        return torch.cat([magnitudes, -magnitudes])
