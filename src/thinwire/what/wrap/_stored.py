"""Residuals kept in 8 bits: what `feedback(store="int8")` leaves on a rank between two flights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from thinwire.kernels import int8


@dataclass(frozen=True, slots=True)
class Int8:
    """`numel` float32 values as `kernels.int8` keeps them: (numel + 4·ceil(numel/256),) uint8.

    Example:
        >>> import torch
        >>> form = Int8(3)
        >>> kept = form.pack(torch.tensor([1.0, 0.26, -0.001]))
        >>> kept.numel(), [round(v, 3) for v in form.unpack(kept).tolist()]
        (7, [1.0, 0.26, 0.0])
    """

    numel: int

    def pack(self, flat: Tensor) -> Tensor:
        return int8.pack(flat)

    def unpack(self, value: Tensor) -> Tensor:
        return int8.unpack(value, self.numel)
