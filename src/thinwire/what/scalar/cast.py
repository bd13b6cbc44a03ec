"""Send values as bf16, with float32's range, or as fp16, with three more bits of precision.

v̂ = round_to_nearest_even(v, dtype): relative error at most 2⁻⁸ (bf16) or 2⁻¹¹ (fp16) in the normal
range. Summable, so the transport's own all-reduce carries it; sums then round once per addition,
where two_shot adds in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from thinwire.core import RankContext, Sectioned, Spec, State, Traits, check_nbytes
from thinwire.errors import StrategyError
from thinwire.kernels import reference

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class cast(Sectioned):
    """Send values as bf16 or fp16: 2 · numel bytes.

    Args:
        dtype: "bf16", or "fp16" (values from 65520 on become infinite on all ranks).

    Raises:
        StrategyError: another dtype.

    Example:
        >>> spec = Spec((), 0, 3, torch.float32)
        >>> cast("bf16").nbytes(spec)
        6
    """

    examples: ClassVar[tuple[str, ...]] = (
        'cast("bf16")',
        'cast("fp16")',
    )

    dtype: Literal["bf16", "fp16"] = "bf16"

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise StrategyError(f"cast({self.dtype!r}): not a 16-bit type; choose 'bf16' or 'fp16'")

    @cached_property
    def traits(self) -> Traits:
        return Traits(summable=True, row_wise=True, divides=True)

    def sum_dtype(self, spec: Spec) -> torch.dtype:
        return _DTYPES[self.dtype]

    def sections(self, spec: Spec) -> tuple[int, ...]:
        return (2 * spec.numel,)

    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        return reference.as_bytes(x.to(_DTYPES[self.dtype]))

    def decode(
        self, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        check_nbytes(self, payload, self.nbytes(spec))
        return reference.from_bytes(payload, _DTYPES[self.dtype]).to(spec.work)

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        info = torch.finfo(_DTYPES[self.dtype])
        error = x.double().abs() * info.eps / 2 + info.smallest_normal * info.eps / 2
        return error.masked_fill(x.double().abs() > info.max, float("inf"))
