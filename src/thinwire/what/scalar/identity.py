"""Send the values themselves, with no loss and no saving."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from thinwire.core import RankContext, Sectioned, Spec, State, Traits, check_nbytes
from thinwire.kernels import reference


@dataclass(frozen=True)
class identity(Sectioned):
    """Send every value in the bucket's own dtype: numel · itemsize bytes, summable.

    Example:
        >>> spec = Spec((), 0, 3, torch.bfloat16)
        >>> identity().nbytes(spec)
        6
    """

    examples: ClassVar[tuple[str, ...]] = ("identity()",)

    @cached_property
    def traits(self) -> Traits:
        return Traits(lossy=False, summable=True, unbiased=True, row_wise=True, divides=True)

    def sum_dtype(self, spec: Spec) -> torch.dtype:
        return spec.dtype

    def sections(self, spec: Spec) -> tuple[int, ...]:
        return (spec.numel * spec.dtype.itemsize,)

    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        return reference.as_bytes(x.to(spec.dtype))

    def decode(
        self, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        check_nbytes(self, payload, self.nbytes(spec))
        return reference.from_bytes(payload, spec.dtype).to(spec.work)

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        exact = x.to(spec.dtype).double()  # differs from x only where x is wider than the bucket
        return (exact - x.double()).abs()
