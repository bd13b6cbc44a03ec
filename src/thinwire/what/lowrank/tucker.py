"""Send a tensor as a small core and one thin factor a dimension (Tucker).

Steps, for each tensor X of n_1 × … × n_d, keeping r_k = ceil(fraction · n_k) directions of
dimension k, or the product of all other r where that is less, since the core has no more:
    1. For each k, that of the largest r_k last: U_k (n_k × r_k) = the leading directions of X along
       dimension k (eigenvectors of its n_k × n_k matrix of products); X is projected on them at
       once: X ← X ×_k U_kᵀ.
    2. What is left of X is the core, r_1 × … × r_d; sent are it and all U_k. Vectors, and what
       would not shrink, travel whole.
    3. Back: core ×_1 U_1 … ×_d U_d.
Dimensions of fewer than 4 (a kernel's 3 × 3) stay whole and have no factor. With T_k what dimension
k alone cannot keep, ||X̂ - X||² <= sum of T_k² <= d · (the least there is at these ranks)².

Source: Tucker 1966; De Lathauwer, De Moor & Vandewalle 2000; truncated dimension by dimension:
Vannieuwenhoven, Vandebril & Meerbergen
2012. Differs from the papers: ranks are fractions of the dimensions; the largest is last.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from thinwire.core import Extent
from thinwire.errors import StrategyError
from thinwire.what.lowrank._factored import Factored, folded, leading

_WHOLE = 4  # shorter dimensions stay whole


@dataclass(frozen=True)
class tucker(Factored):
    """Core and factors of every convolution, matrix and folded matrix, each rank its own; they
    cannot be added unopened.

    Args:
        fraction: directions kept of each dimension, as a fraction of its length in (0, 1), rounded
            up; no more than the others' product.
        fold: 0, or in how many blocks of rows a matrix is folded: it is then a tensor (fold, rows /
            fold, columns), as the heads of an attention weight are. A matrix whose rows it does not
            divide stays one.

    Raises:
        StrategyError: fraction outside (0, 1), or fold < 0 or 1.

    A tensor that holds a NaN or an infinity decodes to NaN throughout.

    Example:
        >>> from thinwire.core import Part, Spec
        >>> spec = Spec((Part("conv", (64, 32, 3, 3), 0, "matrix"),), 0, 18432, torch.float32)
        >>> tucker(0.25).nbytes(spec) == 4 * (16 * 8 * 3 * 3 + 64 * 16 + 32 * 8)
        True
    """

    examples: ClassVar[tuple[str, ...]] = (
        "tucker(0.5)",
        "tucker(0.2, fold=3)",
        "tucker(0.25, fold=2) >> uniform(8)",
        "tucker(0.3)",
    )

    fraction: float
    fold: int = 0

    def __post_init__(self) -> None:
        reasons = []
        if not 0 < self.fraction < 1:
            reasons.append(
                f"tucker(fraction={self.fraction}): a fraction of a dimension's directions lies "
                "in (0, 1)"
            )
        if self.fold < 0 or self.fold == 1:
            reasons.append(
                f"tucker(fold={self.fold}): rows are folded in 2 blocks or more; 0 for none"
            )
        if reasons:
            raise StrategyError(reasons)

    def _shape(self, extent: Extent) -> tuple[int, ...]:
        return folded(extent.part.shape, self.fold)

    def _count(self, shape: tuple[int, ...]) -> int:
        small = self._ranks(shape)
        return math.prod(small) + sum(
            length * count for length, count in zip(shape, small, strict=True) if count < length
        )

    def _factors_of(
        self, xs: Tensor, unit: Tensor, generator_of: Callable[[int], torch.Generator]
    ) -> Tensor:
        # 1. Project on the leading directions of one dimension after the other: each later one
        # works on a smaller tensor.
        left, factors, shape = xs, {}, tuple(xs.shape[1:])
        small = self._ranks(shape)
        # Where the others' ranks set r_k, what they leave has no more directions.
        for axis in sorted(range(len(shape)), key=lambda axis: small[axis]):
            if small[axis] < shape[axis]:
                moved = left.movedim(axis + 1, 1)
                basis = leading(moved.flatten(2), small[axis])
                left = (
                    (basis.mT @ moved.flatten(2))
                    .view(len(xs), small[axis], *moved.shape[2:])
                    .movedim(1, axis + 1)
                )
                factors[axis] = basis.flatten(1)
        # 2. The core carries the unit; the factors are orthonormal and need none.
        return torch.cat(
            [(left * unit).flatten(1), *(factors[axis] for axis in sorted(factors))], 1
        )

    def _whole(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        # Multiply the core by each factor, along its own dimension.
        small = self._ranks(shape)
        at = math.prod(small)
        x = values[:at].view(small)
        for axis, (length, count) in enumerate(zip(shape, small, strict=True)):
            if count < length:
                x = torch.tensordot(
                    values[at : at + length * count].view(length, count), x, dims=([1], [axis])
                ).movedim(0, axis)
                at += length * count
        return x

    def _ranks(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the directions of each dimension: r_k."""
        # Rounded up, but for what rounding adds to a product that is whole.
        small = [
            length
            if length < _WHOLE
            else min(length, math.ceil(self.fraction * length * (1 - 1e-12)))
            for length in shape
        ]
        return tuple(
            count if length < _WHOLE else min(count, math.prod(small[:axis] + small[axis + 1 :]))
            for axis, (length, count) in enumerate(zip(shape, small, strict=True))
        )
