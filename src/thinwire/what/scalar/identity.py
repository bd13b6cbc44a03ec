"""The values themselves: nothing is lost, nothing is saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from thinwire.core import Coder, RankContext, Spec, State
from thinwire.kernels import reference


@dataclass(frozen=True)
class identity(Coder):
    """Send every value in the bucket's own dtype: numel · itemsize bytes, summable.

    Example:
        >>> spec = Spec((), 0, 3, torch.bfloat16)
        >>> identity().nbytes(spec)
        6
    """

    examples: ClassVar[tuple[str, ...]] = ("identity()",)

    @property
    def lossy(self) -> bool:
        return False

    @property
    def summable(self) -> bool:
        return True

    def sum_dtype(self, spec: Spec) -> torch.dtype:
        return spec.dtype

    def nbytes(self, spec: Spec) -> int:
        return spec.numel * spec.dtype.itemsize

    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        return reference.as_bytes(x.to(spec.dtype))

    def decode(
        self, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        self.expect(payload, self.nbytes(spec))
        return reference.from_bytes(payload, spec.dtype).to(spec.work)
