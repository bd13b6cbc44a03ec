"""Send 4-bit normal floats: 16 levels at the quantiles of a normal distribution, scaled by each
block's largest magnitude.

Per block of B values s = max|v|; the payload is m scales (one a block) and n codes of 4 bits.
Steps:
    1. s of each block.
    2. v / s to the nearest of 16 levels from -1 to 1, or to one of its two neighbours at random, so
       that E[Q(v)] = v.
    3. the level's place in ascending order; two codes a byte.
The levels lie where a normal block's values are dense, with a zero and both ends exact: 8 levels
above zero, 7 below. The widest gap, at the negative end, is 0.304 s, so |Q(v) - v| <= 0.152 s to
nearest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from thinwire.errors import StrategyError
from thinwire.kernels import reference
from thinwire.what.scalar._levels import Levels, wrong_block, wrong_rounding

# As published with the paper's code: they fix the format, and are not recomputed here
_LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


@dataclass(frozen=True)
class nf4(Levels):
    """Values as 4-bit normal floats, one scale a block: ceil(n/2) + 4·ceil(n/B) bytes (8· for
    float64 buckets).

    Args:
        block: values that share a scale; 0 means the whole span. The levels suit blocks of about
            64.
        rounding: "nearest", or "stochastic" (unbiased, larger error; drawn by (seed, step, key,
            rank)).

    Raises:
        StrategyError: an argument outside the above.

    A block that holds a NaN or an infinity decodes to NaN throughout.

    Example:
        >>> from thinwire.core import Spec
        >>> nf4(block=64).nbytes(Spec((), 0, 1024, torch.float32))
        576

    Source: QLoRA, Dettmers et al. 2023, arXiv:2305.14314. Differs from the paper: scales stay
    float32 (no second quantisation of them); stochastic rounding is added.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "nf4(block=0)",
        'nf4(rounding="stochastic")',
        "nf4()",
    )

    block: int = 64
    rounding: reference.Rounding = "nearest"

    def __post_init__(self) -> None:
        reasons = [*wrong_block("nf4", self.block), *wrong_rounding("nf4", self.rounding)]
        if reasons:
            raise StrategyError(reasons)

    @property
    def _bits(self) -> int:
        return 4

    def _values(self) -> Tensor:
        return torch.tensor(_LEVELS, dtype=torch.float64)
