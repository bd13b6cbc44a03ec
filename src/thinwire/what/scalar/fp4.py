"""Send 4-bit floats under block scales: Q(v) = s · float4(v / s).

Per block of B values s = max|v| / T with T the format's largest number; the payload is m scales
(one a block) and n codes of 4 bits. Steps:
    1. s of each block.
    2. v / s to the nearest level, or to one of its two neighbours at random, so that E[Q(v)] = v.
    3. the sign in the highest of the 4 bits, exponent and mantissa below it; two codes a byte.
e2m1: 0, ½, 1, 1½, 2, 3, 4, 6 (T = 6), as in MXFP4 and NVFP4. e3m0: 0 and the powers of two from ¼
to 16 (T = 16), as in Streaming DiLoCo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from thinwire.errors import StrategyError
from thinwire.kernels import reference
from thinwire.what.scalar._levels import Levels, wrong_block, wrong_rounding

_MAGNITUDES = {
    "e2m1": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
    "e3m0": (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
}


@dataclass(frozen=True)
class fp4(Levels):
    """Values as 4-bit floats, one scale a block: ceil(n/2) + 4·ceil(n/B) bytes (8· for float64
    buckets).

    Args:
        format: "e2m1" (finer near the largest) or "e3m0" (powers of two: a wider range).
        block: values that share a scale; 0 means the whole span.
        rounding: "nearest", or "stochastic" (unbiased, larger error; drawn by (seed, step, key,
            rank)).

    Raises:
        StrategyError: an argument outside the above.

    A block that holds a NaN or an infinity decodes to NaN throughout.

    Example:
        >>> from thinwire.core import Spec
        >>> fp4("e2m1", block=64).nbytes(Spec((), 0, 1024, torch.float32))
        576

    Source: e2m1, OCP Microscaling, Rouhani et al. 2023, arXiv:2310.10537; e3m0, Streaming DiLoCo,
    Douillard et al. 2025, arXiv:2501.18512. Differs from the papers: a float32 scale a block, not a
    power of two for each 32 values.
    """

    examples: ClassVar[tuple[str, ...]] = (
        'fp4("e3m0", block=32)',
        'fp4("e3m0", block=0, rounding="stochastic")',
        'fp4(block=16, rounding="stochastic")',
        "fp4()",
    )

    format: Literal["e2m1", "e3m0"] = "e2m1"
    block: int = 256
    rounding: reference.Rounding = "nearest"

    def __post_init__(self) -> None:
        reasons = [*wrong_block("fp4", self.block), *wrong_rounding("fp4", self.rounding)]
        if self.format not in _MAGNITUDES:
            reasons.append(f"fp4(format={self.format!r}): choose 'e2m1' or 'e3m0'")
        if reasons:
            raise StrategyError(reasons)

    @property
    def _bits(self) -> int:
        return 4

    def _values(self) -> Tensor:
        magnitudes = torch.tensor(_MAGNITUDES[self.format], dtype=torch.float64)
        return torch.cat([magnitudes, -magnitudes])
