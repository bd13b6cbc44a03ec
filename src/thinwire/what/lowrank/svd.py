"""Send each rank's matrix by its r leading singular vectors, the best low-rank factors there are.

Steps, for each matrix M (m × n) of a rank:
    1. M ≈ U S Vᵀ with the r largest singular values: exactly, or from a random sketch of r + p
       columns: Y = M Ω; then `iterations` times Y = M (Mᵀ orth(Y)); Q = orth(Y); U S Vᵀ = Q ·
       svd(Qᵀ M).
    2. The core is U √S (m × r) and V √S (n × r). Vectors, and matrices that two factors would not
       shrink, are in it whole.
    3. Back: (U √S)(V √S)ᵀ.
Of all matrices of rank r it is the nearest (Eckart & Young 1936): ||M - M_r||² = sum of s_j² for j
> r. The sketch without iterations is in the mean off by at most sqrt(1 + r / (p - 1)) times that
(Halko et al., theorem 10.5), and each iteration brings it nearer.

Source: Halko, Martinsson & Tropp 2011, arXiv:0909.4061; factors of gradients: ATOMO (Wang et al.
2018, arXiv:1806.04090). Differs from
ATOMO: the leading vectors, not a draw that is unbiased; so put it in `feedback(…)`.
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
class svd(Factored):
    """Rank-r factors of every matrix, each rank its own: r (rows + columns) values; they cannot be
    added unopened.

    A parameter of more than two dimensions is a matrix of its first by all others. Factors may be
    sent in fewer bits: `svd(4) >> cast()`.

    Args:
        rank: r, at least 1.
        exact: a full decomposition, O(m n min(m, n)), in place of a sketch, O(m n (r +
            oversample)).
        oversample: p, columns of the sketch beyond r, at least 2.
        iterations: how often the sketch goes through M again; 0 where the singular values fall
            fast.

    Raises:
        StrategyError: rank < 1, oversample < 2 or iterations < 0.

    A matrix that holds a NaN or an infinity decodes to NaN throughout.

    Example:
        >>> from thinwire.core import Part, Spec
        >>> parts = (Part("w", (100, 50), 0, "matrix"), Part("b", (50,), 5000, "vector"))
        >>> spec = Spec(parts, 0, 5050, torch.float32)
        >>> svd(2).nbytes(spec) == 4 * (2 * (100 + 50) + 50)
        True
    """

    examples: ClassVar[tuple[str, ...]] = (
        "svd(2, exact=True)",
        "svd(1, oversample=4, iterations=0)",
        "svd(2) >> uniform(8)",
        "svd(2)",
    )

    rank: int
    exact: bool = False
    oversample: int = 8
    iterations: int = 1

    def __post_init__(self) -> None:
        reasons = []
        if self.rank < 1:
            reasons.append(f"svd(rank={self.rank}): a factor has at least 1 column")
        if self.oversample < 2:
            reasons.append(
                f"svd(oversample={self.oversample}): a sketch needs at least 2 columns more than "
                "the rank"
            )
        if self.iterations < 0:
            reasons.append(f"svd(iterations={self.iterations}): a count is 0 or more")
        if reasons:
            raise StrategyError(reasons)

    @property
    def _randomised(self) -> bool:
        return not self.exact

    def _shape(self, extent: Extent) -> tuple[int, ...]:
        return matrix(extent)

    def _count(self, shape: tuple[int, ...]) -> int:
        return self.rank * sum(shape)

    def _factors_of(
        self, xs: Tensor, unit: Tensor, generator_of: Callable[[int], torch.Generator]
    ) -> Tensor:
        # 1. A basis Q of the range, from a random sketch of r + p columns, sharpened by iterations.
        # QR after each product keeps the small singular values from drowning in the large ones.
        wide, basis = self.rank + self.oversample, None
        if not self.exact and wide < min(xs.shape[1:]):
            sketch = [
                torch.randn(
                    xs.shape[2], wide, generator=generator_of(i), dtype=xs.dtype, device="cpu"
                )
                for i in range(len(xs))
            ]
            basis = torch.linalg.qr(xs @ torch.stack(sketch).to(xs.device)).Q
            for _ in range(self.iterations):
                basis = torch.linalg.qr(xs @ torch.linalg.qr(xs.mT @ basis).Q).Q
        # 2. Decompose the small matrix Qᵀ M (or M itself), and turn its left vectors back by Q.
        u, s, vh = torch.linalg.svd(xs if basis is None else basis.mT @ xs, full_matrices=False)
        u = u if basis is None else basis @ u
        # 3. U √S and V √S: both factors carry half of each singular value, and half of the unit.
        roots = s[:, None, : self.rank].sqrt() * unit.sqrt()
        left, right = u[..., : self.rank] * roots, vh.mT[..., : self.rank] * roots
        return torch.cat([left.flatten(1), right.flatten(1)], 1)

    def _whole(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        cut = shape[0] * self.rank
        return values[:cut].view(-1, self.rank) @ values[cut:].view(-1, self.rank).T
