"""Send a tensor as a chain of thin factors, each joined to the next by r directions (tensor train).

Steps, for each tensor X of n_1 × … × n_d, its shortest dimension moved off the ends:
    1. For k = 1 … d - 1: the rows of X are what came before times n_k; G_k = their r_k = min(r,
       rows, columns) leading directions, and X ← G_kᵀ X, whose rows are the r_k directions times
       n_(k+1).
    2. What is left is G_d. Sent are all G_k, of r_(k-1) × n_k × r_k values each. Vectors, and what
       would not shrink, travel whole.
    3. Back: G_1 G_2 … G_d.
With T_k what no matrix of rank r_k can keep of X cut after dimension k, ||X̂ - X||² <= sum of T_k²
<= (d - 1) · (the least there is)². Every dimension past the second costs r² n_k values in place of
n_k times as many. A matrix is sent as by `svd`.

Source: Oseledets 2011, "Tensor-train decomposition". Differs from the paper: one rank for all
joints, not one accuracy; a kernel's dimensions are one (convolutions are outputs × kernel ×
inputs), and the shortest dimension stands in the middle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from thinwire.core import Extent
from thinwire.errors import StrategyError
from thinwire.what.lowrank._factored import Factored, cube, leading


@dataclass(frozen=True)
class tensortrain(Factored):
    """A train of factors for every convolution, matrix and folded matrix, each rank its own; they
    cannot be added unopened.

    Args:
        rank: r, directions that join one factor to the next, at least 1.
        fold: 0, or in how many blocks of rows a matrix is folded: it is then a tensor (fold, rows /
            fold, columns), as the heads of an attention weight are. A matrix whose rows it does not
            divide stays one.

    Raises:
        StrategyError: rank < 1, or fold < 0 or 1.

    A tensor that holds a NaN or an infinity decodes to NaN throughout.

    Example:
        >>> from thinwire.core import Part, Spec
        >>> spec = Spec((Part("conv", (64, 32, 3, 3), 0, "matrix"),), 0, 18432, torch.float32)
        >>> tensortrain(4).nbytes(spec) == 4 * (64 * 4 + 4 * 9 * 4 + 4 * 32)
        True
    """

    examples: ClassVar[tuple[str, ...]] = (
        "tensortrain(1)",
        "tensortrain(2, fold=3)",
        "tensortrain(2, fold=2) >> uniform(8)",
        "tensortrain(2)",
    )

    rank: int
    fold: int = 0

    def __post_init__(self) -> None:
        reasons = []
        if self.rank < 1:
            reasons.append(
                f"tensortrain(rank={self.rank}): factors are joined by at least 1 direction"
            )
        if self.fold < 0 or self.fold == 1:
            reasons.append(
                f"tensortrain(fold={self.fold}): rows are folded in 2 blocks or more; 0 for none"
            )
        if reasons:
            raise StrategyError(reasons)

    def _shape(self, extent: Extent) -> tuple[int, ...]:
        return cube(extent, self.fold)

    def _count(self, shape: tuple[int, ...]) -> int:
        return sum(before * length * after for before, length, after in self._train(shape))

    def _factors_of(
        self, xs: Tensor, unit: Tensor, generator_of: Callable[[int], torch.Generator]
    ) -> Tensor:
        # The shortest dimension in the middle: its factor, with joints on both sides, is r · n · r.
        axis, factors = _middle(xs.shape[1:]), []
        left = (xs.movedim(axis + 1, 2) if axis is not None else xs).flatten(1)
        train = self._train(tuple(xs.shape[1:]))
        # Each factor is the leading directions of what is left; the rest goes on to the next one.
        for before, length, after in train[:-1]:
            rows = left.view(len(xs), before * length, -1)
            basis = leading(rows, after)
            left = (basis.mT @ rows).flatten(1)
            factors.append(basis.flatten(1))
        return torch.cat([*factors, left * unit.view(-1, 1)], 1)

    def _whole(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        # Multiply the chain from the left; each product has the directions of the next joint last.
        axis, at = _middle(shape), 0
        x = values.new_ones(1, 1)
        for before, length, after in self._train(shape):
            factor = values[at : at + before * length * after].view(before, length * after)
            x = (x @ factor).view(-1, after)
            at += factor.numel()
        return x.view(_moved(shape)).movedim(1, axis) if axis is not None else x

    def _train(self, shape: tuple[int, ...]) -> list[tuple[int, int, int]]:
        """Return (directions before, length, directions after) of each factor."""
        lengths = _moved(shape)
        # A joint has no more directions than what lies before it, or after it, can hold.
        joints, rest = [1], torch.Size(lengths).numel()
        for length in lengths[:-1]:
            rest //= length
            joints.append(min(self.rank, joints[-1] * length, rest))
        return [
            (before, length, after)
            for (before, after), length in zip(pairwise([*joints, 1]), lengths, strict=True)
        ]


def _middle(shape: tuple[int, ...]) -> int | None:
    """Return which of three dimensions belongs in the middle: the shortest; `None` where there are
    fewer."""
    return min(range(3), key=lambda axis: shape[axis]) if len(shape) == 3 else None


def _moved(shape: tuple[int, ...]) -> tuple[int, ...]:
    axis = _middle(shape)
    if axis is None:
        return shape
    others = [length for i, length in enumerate(shape) if i != axis]
    return others[0], shape[axis], others[1]
