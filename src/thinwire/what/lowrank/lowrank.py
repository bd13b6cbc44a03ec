"""Send each matrix as two thin factors, by one warm power iteration a step: PowerSGD.

A matrix M_i (m × n) on each rank is sent as two thin factors; with M = sum of M_i and Q (n × r)
kept from the step before:
    1. P = sum of M_i Q         (all-reduce of m·r numbers)
    2. P̂ = orthonormal basis of P
    3. Q = sum of M_iᵀ P̂       (all-reduce of n·r numbers)
    4. sum = P̂ Qᵀ; this rank sent P̂ P̂ᵀ M_i
(m + n) r numbers instead of m n. Vectors, and matrices that two factors would not shrink, travel
whole in round 1. It is biased: use `feedback(lowrank(r))`.

Source: Vogels, Karimireddy, Jaggi 2019, arXiv:1905.13727. Differs from the paper: the residual
holds what *this rank's* projection lost (M_i - P̂P̂ᵀM_i; the same sum over ranks, smaller norms);
P̂ by Householder QR, which stays orthonormal when P loses rank, for all matrices of one shape in
one batch; Q is scaled to a largest entry of 1, so that tiny gradients do not underflow in M Q.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from thinwire.core import Codec, Leaf, Outcome, RankContext, Rounds, Spec, State, Traits
from thinwire.errors import StrategyError
from thinwire.kernels import fast, memory
from thinwire.what.lowrank._parts import (
    bases,
    matrix,
    numbers,
    projection_bound,
    run,
    shrinks,
    warm,
)


@dataclass(frozen=True)
class lowrank(Codec):
    """Rank-r factors of every matrix of a bucket; summable, two rounds.

    A parameter of more than two dimensions is a matrix of its first by all others.

    Args:
        rank: r, at least 1.

    Raises:
        StrategyError: rank < 1.

    A matrix that holds a NaN or an infinity on any rank is not finite in the sum, and its Q stays
    as it was.

    Example:
        >>> from thinwire.core import Part
        >>> parts = (Part("w", (100, 50), 0, "matrix"), Part("b", (50,), 5000, "vector"))
        >>> spec = Spec(parts, 0, 5050, torch.float32)
        >>> lowrank(2).nbytes(spec) == 4 * (2 * (100 + 50) + 50)
        True
    """

    examples: ClassVar[tuple[str, ...]] = ("lowrank(2)",)

    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise StrategyError(f"lowrank(rank={self.rank}): a factor has at least 1 column")

    @cached_property
    def traits(self) -> Traits:
        return Traits(grain="part", summable=True)

    def init(self, spec: Spec, ctx: RankContext) -> State:
        # Q is drawn once, from the shared seed of step 0: all ranks begin with the same.
        leaves = {}
        for extent in spec.extents():
            if shrinks(extent, self.rank):
                shape = (matrix(extent)[1], self.rank)
                generator = replace(ctx, step=0).generator(
                    spec.span(extent.part.begin, extent.part.end), shared=True
                )
                start = torch.randn(shape, generator=generator, dtype=spec.work, device="cpu")
                leaves[extent.part.name] = Leaf(
                    start.to(torch.get_default_device()), "replicated", part=extent.part.name
                )
        return State({f"q/{name}": leaf for name, leaf in leaves.items()})

    def nbytes(self, spec: Spec) -> int:
        count = 0
        for extent in spec.extents():
            rows, columns = matrix(extent)
            count += (
                self.rank * (rows + columns)
                if shrinks(extent, self.rank)
                else extent.high - extent.low
            )
        return count * spec.work.itemsize

    def rounds(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Rounds:
        # Matrices that two factors shrink are thin; all else travels whole.
        x = x.to(spec.work)
        thin = [extent for extent in spec.extents() if shrinks(extent, self.rank)]
        whole = [extent for extent in spec.extents() if not shrinks(extent, self.rank)]
        qs = [state[f"q/{extent.part.name}"] for extent in thin]
        ms = [run(x, extent).view(matrix(extent)) for extent in thin]  # (m, n) each

        # 1. P = sum of M_i Q, and the values that travel whole behind it.
        ps = yield numbers(
            [fast.thin_product(m, q.value) for m, q in zip(ms, qs, strict=True)]
            + [run(x, extent) for extent in whole],
            spec,
            x,
            ctx,
        )
        total = memory.empty_like(x)
        at = sum(m.shape[0] * self.rank for m in ms)
        for extent in whole:
            run(total, extent).copy_(ps[at : at + extent.high - extent.low])
            at += extent.high - extent.low
        if not thin:
            return Outcome(total, lambda: x)

        # 2. P̂ = orthonormal basis of P.
        ps_hat = bases(
            [
                p.view(m.shape[0], self.rank)
                for m, p in zip(ms, _split(ps, ms, 0, self.rank), strict=True)
            ]
        )  # (m, r)
        # 3. Q = sum of M_iᵀ P̂.
        own = [
            fast.thin_product(m, basis, transposed=True)
            for m, basis in zip(ms, ps_hat, strict=True)
        ]  # (n, r): this rank's share of Q
        sums = yield numbers(own, spec, x, ctx)
        new = [
            q.view(m.shape[1], self.rank)
            for m, q in zip(ms, _split(sums, ms, 1, self.rank), strict=True)
        ]
        # 4. The sum is P̂ Qᵀ; Q is kept for the next step.
        for extent, basis, q, leaf in zip(thin, ps_hat, new, qs, strict=True):
            fast.outer(basis, q, run(total, extent).view(matrix(extent)))
            leaf.value = warm(q, leaf.value)

        def sent() -> Tensor:
            # P̂ P̂ᵀ M_i: this rank's own Q in place of the sum.
            out = memory.empty_like(x)
            for extent in whole:
                run(out, extent).copy_(run(x, extent))
            for extent, basis, q in zip(thin, ps_hat, own, strict=True):
                fast.outer(basis, q, run(out, extent).view(matrix(extent)))
            return out

        return Outcome(total, sent)

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        return projection_bound(x, [p for p in spec.extents() if shrinks(p, self.rank)], spec)


def _split(flat: Tensor, ms: list[Tensor], dim: int, rank: int) -> list[Tensor]:
    """Return the runs of `flat` that belong to each matrix: (shape[dim] * rank,) each."""
    sizes = [m.shape[dim] * rank for m in ms]
    return list(flat[: sum(sizes)].split(sizes))
