"""Send each rank's matrix as two factors that are fitted to it in turn, by least squares.

Steps, for each matrix M (m × n) of a rank, c its largest magnitude:
    1. B (n × r) is drawn.
    2. `sweeps` times: A = M B (BᵀB + λI)⁻¹, the best A for this B; then B = Mᵀ A (AᵀA + λI)⁻¹, the
       best B for this A. A factor is turned beforehand so that its columns are orthogonal, which
       changes A Bᵀ in nothing: the inverse is then a division.
    3. The core is A (m × r) and B (n × r), the columns of a pair of equal length. Vectors, and
       matrices that two factors would not shrink, are in it whole.
    4. Back: A Bᵀ.
No step makes ||M - A Bᵀ||² + λ (||A||² + ||B||²) larger, where λ = ridge · c. A sweep goes through
M twice and is one power iteration, with no decomposition of anything larger than r × r. As sweeps
grow it ends at the best matrix of rank r, its singular values s_j lowered by λ, and gone where s_j
<= λ.

Source: softImpute-ALS (Hastie, Mazumder, Lee & Zadeh 2015, arXiv:1410.2596). Differs from the
paper: all of M is known, so nothing is imputed; factors are turned by the eigenvectors of r × r
products, not by singular vectors. It is biased: use `feedback(als(r))`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from thinwire.core import Extent
from thinwire.errors import StrategyError
from thinwire.what.lowrank._factored import Factored
from thinwire.what.lowrank._parts import matrix


@dataclass(frozen=True)
class als(Factored):
    """Rank-r factors of every matrix, each rank its own: r (rows + columns) values; they cannot be
    added unopened.

    A parameter of more than two dimensions is a matrix of its first by all others. Factors may be
    sent in fewer bits: `als(4) >> cast()`.

    Args:
        rank: r, at least 1.
        sweeps: how often both factors are fitted, at least 1.
        ridge: λ in units of the matrix's largest magnitude, 0 or more; singular values are lowered
            by so much, and smaller ones left out.

    Raises:
        StrategyError: rank < 1, sweeps < 1, or ridge negative or not finite.

    A matrix that holds a NaN or an infinity decodes to NaN throughout.

    Example:
        >>> from thinwire.core import Part, Spec
        >>> parts = (Part("w", (100, 50), 0, "matrix"), Part("b", (50,), 5000, "vector"))
        >>> spec = Spec(parts, 0, 5050, torch.float32)
        >>> als(2).nbytes(spec) == 4 * (2 * (100 + 50) + 50)
        True
    """

    examples: ClassVar[tuple[str, ...]] = (
        "als(1, sweeps=1)",
        "als(2, ridge=0.1)",
        "als(2) >> uniform(8)",
        "als(2)",
    )

    rank: int
    sweeps: int = 3
    ridge: float = 0.0

    def __post_init__(self) -> None:
        reasons = []
        if self.rank < 1:
            reasons.append(f"als(rank={self.rank}): a factor has at least 1 column")
        if self.sweeps < 1:
            reasons.append(f"als(sweeps={self.sweeps}): both factors are fitted at least once")
        if not 0 <= self.ridge < float("inf"):
            reasons.append(
                f"als(ridge={self.ridge}): a share of the largest magnitude is 0 or more, and "
                "finite"
            )
        if reasons:
            raise StrategyError(reasons)

    @property
    def _randomised(self) -> bool:
        return True

    def _shape(self, extent: Extent) -> tuple[int, ...]:
        return matrix(extent)

    def _count(self, shape: tuple[int, ...]) -> int:
        return self.rank * sum(shape)

    def _factors_of(
        self, xs: Tensor, unit: Tensor, generator_of: Callable[[int], torch.Generator]
    ) -> Tensor:
        # 1. Draw B for every matrix of the batch.
        columns = xs.shape[2]
        drawn = [
            torch.randn(self.rank, columns, generator=generator_of(i), dtype=xs.dtype, device="cpu")
            for i in range(len(xs))
        ]
        # A start about as large as the factors will be: λ weighs on both alike.
        size = xs.norm(dim=(1, 2), keepdim=True)
        # (k, r, n): rows times M are faster than M times columns.
        right = torch.stack(drawn).to(xs.device) * (size / columns).sqrt()
        # 2. Least squares in turn; turning a factor makes its Gram matrix diagonal, so that the
        # inverse is a division.
        left = right
        for _ in range(self.sweeps):
            right, weights = _turned(right, self.ridge)
            left, weights = _turned(right @ xs.mT * weights, self.ridge)
            right = left @ xs * weights
        # 3. Split each pair's length evenly, and give half of the matrix's unit to either factor.
        m, n = (factor.norm(dim=2, keepdim=True) for factor in (left, right))
        even = torch.where((m > 0) & (n > 0), n / m, torch.ones_like(m)).sqrt()
        return torch.cat(
            [(left * even * unit.sqrt()).flatten(1), (right / even * unit.sqrt()).flatten(1)], 1
        )

    def _whole(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        cut = shape[0] * self.rank
        return values[:cut].view(self.rank, -1).T @ values[cut:].view(self.rank, -1)


def _turned(rows: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Turn F so that its rows are orthogonal, of squared lengths d; return it and 1 / (d + λ): (k,
    r, n) -> (k, r, n), (k, r, 1)."""
    wide = rows.double()
    turned = torch.linalg.eigh(wide @ wide.mT).eigenvectors.mT @ wide
    d = turned.square().sum(2, keepdim=True)
    least = max(64 * torch.finfo(rows.dtype).eps ** 2, 1e-16) * d.amax(
        1, keepdim=True
    )  # what is not longer is rounding
    weights = torch.where(d > least, 1 / (d + ridge), torch.zeros_like(d))
    return turned.to(rows.dtype), weights.to(rows.dtype)
