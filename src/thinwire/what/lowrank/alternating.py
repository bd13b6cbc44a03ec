"""Send one of two thin factors a step: half of PowerSGD's bytes, and one round in place of two.

M_i (m × n) is rank i's matrix and M = sum of M_i. Steps, by turns, from Q (n × r) drawn at first:
    even:  Q̂ = orthonormal basis of Q;  P = sum of M_i Q̂   (all-reduce of m·r numbers);  sum = P
           Q̂ᵀ;  this rank sent M_i Q̂ Q̂ᵀ
    odd:   P̂ = orthonormal basis of P;  Q = sum of M_iᵀ P̂  (all-reduce of n·r numbers);  sum = P̂
           Qᵀ;  this rank sent P̂ P̂ᵀ M_i
Each step is half a power iteration, on from the step before: the same directions are found in twice
    as many steps.
Vectors, and matrices that two factors would not shrink, travel whole. It is biased: use
    `feedback(alternating(r))`.

Source: ACP-SGD (Zhang, Zhang, Shi, Chu & Li 2023, arXiv:2306.08881). Differs from the paper: the
basis by Householder QR, which stays orthonormal where a factor loses rank; a factor is kept at a
largest entry of 1, so that tiny gradients do not underflow; the residual is what this rank's own
projection lost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from thinwire.core import (
    Codec,
    Extent,
    Leaf,
    Outcome,
    RankContext,
    Rounds,
    Spec,
    State,
    Traits,
)
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
class alternating(Codec):
    """Rank-r factors of every matrix, one of the two a step; summable, one round.

    A parameter of more than two dimensions is a matrix of its first by all others.

    Args:
        rank: r, at least 1.

    Raises:
        StrategyError: rank < 1.

    Bytes go up and down by turns, so `nbytes` is `None` where a matrix is thinned, and `max_nbytes`
    the larger turn. A matrix that holds a NaN or an infinity on any rank is not finite in the sum,
    and the factor that was due stays as it was.

    Example:
        >>> from thinwire.core import Part
        >>> parts = (Part("w", (100, 50), 0, "matrix"), Part("b", (50,), 5000, "vector"))
        >>> spec = Spec(parts, 0, 5050, torch.float32)
        >>> alternating(2).max_nbytes(spec) == 4 * (2 * 100 + 50)
        True
    """

    examples: ClassVar[tuple[str, ...]] = (
        "alternating(1)",
        "feedback(alternating(2))",
        "alternating(2)",
    )

    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise StrategyError(f"alternating(rank={self.rank}): a factor has at least 1 column")

    @cached_property
    def traits(self) -> Traits:
        return Traits(grain="part", summable=True)

    def init(self, spec: Spec, ctx: RankContext) -> State:
        # Both first factors come from the shared seed of step 0, so that ranks agree without a
        # message.
        leaves = {}
        for extent in filter(self.shrinks, spec.extents()):
            name, (rows, columns) = extent.part.name, matrix(extent)
            generator = replace(ctx, step=0).generator(
                spec.span(extent.part.begin, extent.part.end), shared=True
            )
            for factor, length in (("q", columns), ("p", rows)):
                start = torch.randn(
                    (length, self.rank), generator=generator, dtype=spec.work, device="cpu"
                )
                leaves[f"{factor}/{name}"] = Leaf(
                    start.to(torch.get_default_device()), "replicated", part=name
                )
            # The turn counts a matrix's launches; even sends P, odd sends Q.
            leaves[f"turn/{name}"] = Leaf(
                torch.zeros((), dtype=torch.int64, device="cpu"), "replicated", part=name
            )
        return State(leaves)

    def nbytes(self, spec: Spec) -> int | None:
        # The two factors of a matrix differ in length, so bytes are constant only if all are
        # square.
        square = all(
            matrix(extent)[0] == matrix(extent)[1]
            for extent in filter(self.shrinks, spec.extents())
        )
        return self.max_nbytes(spec) if square else None

    def max_nbytes(self, spec: Spec) -> int:
        """Bound the bytes: as if the turns of all matrices fell together on the longer side."""
        sizes = [
            self.rank * max(matrix(extent)) if self.shrinks(extent) else extent.high - extent.low
            for extent in spec.extents()
        ]
        return sum(sizes) * spec.work.itemsize

    def rounds(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Rounds:
        # Whose turn it is is kept for each matrix: a launch may hold some of them only.
        x = x.to(spec.work)
        extents = list(spec.extents())
        thin = [extent for extent in extents if self.shrinks(extent)]
        is_odd = {
            extent.part.name: bool(state[f"turn/{extent.part.name}"].value % 2) for extent in thin
        }

        def spread(factor: Tensor, extent: Extent, out: Tensor) -> None:
            """Write the product of this turn's factor and the basis into the extent of `out`."""
            rows, columns = (
                (basis[extent.part.name], factor)
                if is_odd[extent.part.name]
                else (factor, basis[extent.part.name])
            )
            fast.outer(rows, columns, run(out, extent).view(matrix(extent)))

        # 1. The basis of the factor that is not sent in this step.
        held = [
            state[f"{'p' if is_odd[extent.part.name] else 'q'}/{extent.part.name}"].value
            for extent in thin
        ]
        basis = dict(zip((extent.part.name for extent in thin), bases(held), strict=True))
        # 2. Sum the other factor over the ranks, and what travels whole.
        own = {
            name: fast.thin_product(
                run(x, extent).view(matrix(extent)), basis[name], transposed=is_odd[name]
            )
            for extent, name in zip(thin, basis, strict=True)
        }
        total = yield numbers(
            [own.get(extent.part.name, run(x, extent)) for extent in extents], spec, x, ctx
        )

        # 3. Multiply the factors; keep the summed one, and let the other have the next turn.
        out, at = memory.empty_like(x), 0
        for extent in extents:
            name = extent.part.name
            if name not in own:
                run(out, extent).copy_(total[at : at + extent.high - extent.low])
                at += extent.high - extent.low
                continue
            factor = total[at : at + own[name].numel()].view_as(own[name])
            at += factor.numel()
            spread(factor, extent, out)
            leaf = state[f"{'q' if is_odd[name] else 'p'}/{name}"]
            leaf.value = warm(factor, leaf.value)
            state[f"turn/{name}"].value = state[f"turn/{name}"].value + 1

        # This rank's contribution as it was summed: its own factor in place of the total.
        def sent() -> Tensor:
            sent_values = memory.empty_like(x)
            for extent in extents:
                if extent.part.name in own:
                    spread(own[extent.part.name], extent, sent_values)
                else:
                    run(sent_values, extent).copy_(run(x, extent))
            return sent_values

        return Outcome(out, sent)

    def shrinks(self, extent: Extent) -> bool:
        """Return whether two factors are fewer values than the matrix."""
        return shrinks(extent, self.rank)

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        return projection_bound(x, list(filter(self.shrinks, spec.extents())), spec)
