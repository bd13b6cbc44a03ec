"""Send 8-bit floats under block scales: Q(v) = s · float8(v / s).

Per block of B values s = max|v| / T with T the type's largest number, so the block's largest value
is exact and nothing overflows; the payload is m scales (one a block) and n bytes. Steps:
    1. s of each block.
    2. v / s to the nearest float8, or to one of its two neighbours at random, so that E[Q(v)] = v.
    3. its byte.
Relative error at most 2⁻⁴ where |v/s| >= 2⁻⁶ (e4m3, T = 448), 2⁻³ where |v/s| >= 2⁻¹⁴ (e5m2, T =
57344); absolute below. Twice that at random.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from thinwire.errors import StrategyError
from thinwire.kernels import reference
from thinwire.what.scalar._levels import Levels, wrong_block, wrong_rounding

_DTYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


@dataclass(frozen=True)
class fp8(Levels):
    """Values as 8-bit floats, one scale a block: n + 4·ceil(n/B) bytes (8· for float64 buckets).

    Args:
        format: "e4m3" (3 bits of mantissa) or "e5m2" (2, and a range 2^14 wider).
        block: values that share a scale; 0 means the whole span.
        rounding: "nearest" (ties to even), or "stochastic" (unbiased, larger error; drawn by (seed,
            step, key, rank)).

    Raises:
        StrategyError: an argument outside the above.

    A block that holds a NaN or an infinity decodes to NaN throughout.

    Example:
        >>> from thinwire.core import Spec
        >>> fp8("e4m3", block=128).nbytes(Spec((), 0, 1024, torch.float32))
        1056

    Source: Micikevicius et al. 2022, arXiv:2209.05433. Differs from the paper: a scale a block (128
    as in DeepSeek-V3, arXiv:2412.19437, or more), not a tensor; stochastic rounding is added.
    """

    examples: ClassVar[tuple[str, ...]] = (
        'fp8("e5m2", block=0)',
        'fp8("e5m2", block=32, rounding="stochastic")',
        'fp8(rounding="stochastic")',
        "fp8(block=32)",
    )

    format: Literal["e4m3", "e5m2"] = "e4m3"
    block: int = 256
    rounding: reference.Rounding = "nearest"

    def __post_init__(self) -> None:
        reasons = [*wrong_block("fp8", self.block), *wrong_rounding("fp8", self.rounding)]
        if self.format not in _DTYPES:
            reasons.append(f"fp8(format={self.format!r}): choose 'e4m3' or 'e5m2'")
        if reasons:
            raise StrategyError(reasons)

    @property
    def _bits(self) -> int:
        return 8

    def _values(self) -> Tensor:
        values = (
            torch.arange(256, dtype=torch.int16).to(torch.uint8).view(_DTYPES[self.format]).double()
        )
        return torch.where(values.isfinite(), values, torch.full_like(values, float("nan")))

    @property
    def _float8(self) -> torch.dtype:
        return _DTYPES[self.format]
