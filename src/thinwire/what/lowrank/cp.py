"""Send a tensor as a sum of r outer products of one vector a dimension (CANDECOMP/PARAFAC).

Steps, for each tensor X of n_1 × n_2 × n_3 of a rank (a convolution is outputs × inputs × kernel),
its longest dimension last:
    1. B and C are drawn, r vectors each, of length 1.
    2. `sweeps` times A, then B, then C become the best for the other two, with λ falling from 100
       ridge to ridge. For A, its terms standing in columns: A = X_(1) P (G + λI)⁻¹, where column j
       of P is b_j ⊗ c_j, and G = PᵀP = (BᵀB) * (CᵀC), entry by entry. Where terms grow alike G has
       hardly an inverse, so it is taken apart by its eigenvectors. Then vectors are set to length
       1.
    3. The core is A, B and C, the vectors of one term of equal length. Vectors, and what would not
       shrink, are in it whole.
    4. Back: the sum over j of a_j ∘ b_j ∘ c_j.
No step makes ||X - X̂||² + λ (sum over j of w_j²) larger, w_j the length of term j. Without a ridge
the least error may not be reached by any r terms: two of them grow without bound and cancel each
other (de Silva & Lim 2008). With one, no w_j exceeds ||X|| / √ridge. A sweep goes through X twice,
as A and B share the products of X and C. A matrix has no terms of its own, and is sent as by
`als(r, sweeps)`.

Source: Carroll & Chang 1970; Harshman 1970; Kolda & Bader 2009, "Tensor decompositions and
applications", section 3.4. Differs from
them: the ridge, and that it falls; sweeps are counted, not judged; a kernel's dimensions are one.
It is biased: use `feedback(cp(r))`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from thinwire.core import Extent
from thinwire.errors import StrategyError
from thinwire.what.lowrank._factored import Factored, cube
from thinwire.what.lowrank.als import als

_FALL = 100  # from the first sweep's ridge to the last's: terms that begin apart seldom grow alike
# units in the last place: with less, terms may grow so long that only their rounding is left where
# they cancel
_LEAST = 64


@dataclass(frozen=True)
class cp(Factored):
    """Sums of r outer products for every convolution, matrix and folded matrix: r (n_1 + n_2 + n_3)
    values; they cannot be added unopened.

    Args:
        rank: r, terms of a tensor, at least 1.
        fold: 0, or in how many blocks of rows a matrix is folded: it is then a tensor (fold, rows /
            fold, columns), as the heads of an attention weight are. A matrix whose rows it does not
            divide stays one.
        sweeps: how often all factors are fitted, at least 1.
        ridge: λ of the last sweep: what a term's squared length weighs beside the squared error, 0
            or more. A lone term arrives 1 + ridge times too short. Rounding asks for 64 units in
            the last place at least.

    Raises:
        StrategyError: rank < 1, fold < 0 or 1, sweeps < 1, or ridge negative or not finite.

    A tensor that holds a NaN or an infinity decodes to NaN throughout.

    Example:
        >>> from thinwire.core import Part, Spec
        >>> spec = Spec((Part("conv", (64, 32, 3, 3), 0, "matrix"),), 0, 18432, torch.float32)
        >>> cp(8).nbytes(spec) == 4 * 8 * (64 + 32 + 9)
        True
    """

    examples: ClassVar[tuple[str, ...]] = (
        "cp(1, sweeps=1)",
        "cp(2, fold=3, ridge=0.0)",
        "cp(2, fold=2) >> uniform(8)",
        "cp(2)",
    )

    rank: int
    fold: int = 0
    sweeps: int = 10
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        reasons = []
        if self.rank < 1:
            reasons.append(f"cp(rank={self.rank}): a tensor is a sum of at least 1 term")
        if self.fold < 0 or self.fold == 1:
            reasons.append(f"cp(fold={self.fold}): rows are folded in 2 blocks or more; 0 for none")
        if self.sweeps < 1:
            reasons.append(f"cp(sweeps={self.sweeps}): all factors are fitted at least once")
        if not 0 <= self.ridge < float("inf"):
            reasons.append(
                f"cp(ridge={self.ridge}): what a term weighs beside the error is 0 or more, and "
                "finite"
            )
        if reasons:
            raise StrategyError(reasons)

    @property
    def _randomised(self) -> bool:
        return True

    def _shape(self, extent: Extent) -> tuple[int, ...]:
        return tuple(length for length in cube(extent, self.fold) if length != 1) or (
            1,
        )  # a kernel of 1 × 1 is none: it is a matrix

    def _count(self, shape: tuple[int, ...]) -> int:
        return self.rank * sum(shape)

    def _factors_of(
        self, xs: Tensor, unit: Tensor, generator_of: Callable[[int], torch.Generator]
    ) -> Tensor:
        # A matrix has no third dimension: it goes as by `als`.
        if xs.dim() == 3:
            return als(self.rank, self.sweeps)._factors_of(xs, unit, generator_of)
        # 1. Draw B and C of length 1; the longest dimension lies last, where contracting it
        # first leaves the least to do for A and B.
        x = xs.movedim(_longest(xs.shape[1:]) + 1, 3)  # (k, a, b, c)
        drawn = [
            torch.randn(
                self.rank,
                x.shape[2] + x.shape[3],
                generator=generator_of(i),
                dtype=x.dtype,
                device="cpu",
            )
            for i in range(len(x))
        ]
        b, c = (
            _unit(rows) for rows in torch.stack(drawn).to(x.device).split(x.shape[2:], 2)
        )  # (k, r, b), (k, r, c)
        # 2. Each factor in turn, best for the other two, under a ridge that falls from sweep to
        # sweep.
        flat = x.flatten(1, 2)  # (k, a · b, c)
        least = max(self.ridge, _LEAST * torch.finfo(x.dtype).eps)
        for sweep in range(1, self.sweeps + 1):
            ridge = max(
                least, self.ridge * _FALL ** ((self.sweeps - sweep) / max(self.sweeps - 1, 1))
            )
            # X times C serves both A and B, so a sweep reads X twice and not three times.
            along = (c @ flat.mT).unflatten(2, x.shape[1:3])  # (k, r, a, b)
            a = _unit(_solved(_products(b, c), (along @ b[..., None])[..., 0], ridge))
            b = _unit(_solved(_products(a, c), (a[:, :, None] @ along)[:, :, 0], ridge))
            # The last factor keeps the length of its terms until the sweeps are over.
            full = _last(a, b, flat, ridge)
            c = _unit(full)
        # 3. Spread a term's length over its three vectors: each gets the cube root.
        even = (full.norm(dim=2, keepdim=True) * unit.view(-1, 1, 1)).pow(1 / 3)
        return torch.cat([(factor * even).flatten(1) for factor in (a, b, c)], 1)

    def _whole(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 2:
            return als(self.rank)._whole(values, shape)
        # 4. The sum of outer products: pairs of A and B as columns, times C, which is the last
        # dimension.
        axis = _longest(shape)
        moved = [*(length for i, length in enumerate(shape) if i != axis), shape[axis]]
        a, b, c = (
            rows.view(self.rank, -1)
            for rows in values.split([self.rank * length for length in moved])
        )
        x: Tensor = _pairs(a, b).mT @ c
        return x.view(moved).movedim(2, axis)


def _longest(shape: tuple[int, ...]) -> int:
    return max(range(3), key=lambda axis: shape[axis])


def _unit(rows: Tensor) -> Tensor:
    """Return each row at length 1; one of zeros stays so."""
    size = rows.norm(dim=2, keepdim=True)
    return rows / torch.where(size > 0, size, torch.ones_like(size))


def _products(one: Tensor, other: Tensor) -> Tensor:
    """Return (FᵀF) * (HᵀH) of two factors, in float64: (k, r, n), (k, r, m) -> (k, r, r)."""
    one, other = one.double(), other.double()
    return (one @ one.mT) * (other @ other.mT)


def _pairs(a: Tensor, b: Tensor) -> Tensor:
    """Return a_j ∘ b_j of each term, flat: (…, r, n), (…, r, m) -> (…, r, n · m)."""
    return (a[..., :, None] * b[..., None, :]).flatten(-2)


def _solved(gram: Tensor, right: Tensor, ridge: float) -> Tensor:
    """Multiply r rows by (G + λI)⁻¹: (k, r, r), (k, r, n) -> (k, r, n)."""
    vectors, weights = _inverse(gram, ridge)
    return (vectors * weights @ (vectors.mT @ right.double())).to(right.dtype)


def _last(a: Tensor, b: Tensor, flat: Tensor, ridge: float) -> Tensor:
    """Return the best C: (k, r, c). Its products with X are by orthogonal rows, so that what they
    round off stays small."""
    vectors, weights = _inverse(_products(a, b), ridge)
    turned = (vectors.mT @ _pairs(a, b).double()).to(flat.dtype)
    return (vectors * weights @ (turned @ flat).double()).to(flat.dtype)


def _inverse(gram: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Return G's eigenvectors, and 1 / (its eigenvalues + λ): (k, r, r), (k, 1, r)."""
    values, vectors = torch.linalg.eigh(gram)
    return vectors, 1 / (values[:, None].clamp(min=0) + ridge)
