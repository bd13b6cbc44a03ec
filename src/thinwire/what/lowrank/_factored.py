"""Send parts as factors: what `als`, `svd` and others share. They give `_shape`, `_count`,
`_factors_of` and `_whole`."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from thinwire.core import Extent, RankContext, Spec, State, Traits, check_nbytes
from thinwire.what.lowrank._parts import projection_bound, run
from thinwire.what.wrap.chain import Transform


class Factored(Transform):
    """A transform whose core is, part by part, factors, or values where factors would not be fewer.
    Those of one shape are made in one batch."""

    @abstractmethod
    def _shape(self, extent: Extent) -> tuple[int, ...]:
        """A part as the matrix or tensor that it is seen as."""

    @abstractmethod
    def _count(self, shape: tuple[int, ...]) -> int:
        """Values of all factors of a tensor of this shape."""

    @abstractmethod
    def _factors_of(
        self, xs: Tensor, unit: Tensor, generator_of: Callable[[int], torch.Generator]
    ) -> Tensor:
        """The factors of `unit` times each of some tensors of one shape, none larger than 1: (k,
        *shape), (k, 1, …) -> (k, count)."""

    @abstractmethod
    def _whole(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The tensor again: (count,) -> (*shape)."""

    @property
    def _randomised(self) -> bool:
        """Return whether `_factors_of` draws random numbers."""
        return False

    @cached_property
    def traits(self) -> Traits:
        return Traits(grain="part", randomised=self._randomised)

    def core_numel(self, spec: Spec) -> int:
        return sum(count for _, _, count in self._runs(spec)) if spec.parts else spec.numel

    def side_nbytes(self, spec: Spec, core_numel: int) -> int:
        return 0

    def split(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> tuple[Tensor, Tensor]:
        x = x.to(spec.work).contiguous()
        side = torch.empty(0, dtype=torch.uint8, device=x.device)
        if not spec.parts:
            return x, side
        # 1. Group the matrices by shape, for one decomposition in a batch; copy all else.
        core = x.new_empty(self.core_numel(spec))
        alike: dict[tuple[int, ...], list[tuple[Extent, int]]] = defaultdict(list)
        for extent, at, count in self._runs(spec):
            if self.shrinks(extent):
                alike[self._shape(extent)].append((extent, at))
            else:
                core[at : at + count] = run(x, extent)
        for shape, placed in alike.items():
            extents = [extent for extent, _ in placed]

            def generator_of(i: int, extents: list[Extent] = extents) -> torch.Generator:
                return ctx.generator(
                    spec.span(extents[i].part.begin, extents[i].part.end), shared=False
                )

            # 2. Scale each to a largest entry of 1: squares of tiny or huge numbers would vanish.
            xs = torch.stack([run(x, extent).view(shape) for extent in extents])
            largest = xs.abs().amax(tuple(range(1, xs.dim())), keepdim=True)
            sound = largest.isfinite()
            unit = torch.where(sound & (largest > 0), largest, torch.ones_like(largest))
            xs = torch.where(sound, xs, torch.zeros_like(xs)) / unit

            # 3. Factors, in the original units; NaN where a tensor is not finite.
            values = self._factors_of(xs, unit, generator_of).masked_fill(
                ~sound.view(-1, 1), float("nan")
            )
            for (_, at), own in zip(placed, values, strict=True):
                core[at : at + own.numel()] = own
        return core, side

    def join(
        self, core: Tensor, side: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        check_nbytes(self, side, 0)
        if not spec.parts:
            return core
        # Back to values part by part, as `split` laid them out.
        out = torch.empty(spec.numel, dtype=spec.work, device=core.device)
        for extent, at, count in self._runs(spec):
            own = core[at : at + count]
            run(out, extent).copy_(
                self._whole(own, self._shape(extent)).reshape(-1) if self.shrinks(extent) else own
            )
        return out

    def shrinks(self, extent: Extent) -> bool:
        """Return whether its factors are fewer values than the part."""
        return extent.whole and self._count(self._shape(extent)) < extent.part.numel

    def _runs(self, spec: Spec) -> Iterator[tuple[Extent, int, int]]:
        """Yield each extent, where its factors or values lie in the core, and how many they are."""
        at = 0
        for extent in spec.extents():
            count = (
                self._count(self._shape(extent))
                if self.shrinks(extent)
                else extent.high - extent.low
            )
            yield extent, at, count
            at += count

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        return projection_bound(x, list(filter(self.shrinks, spec.extents())), spec)

    def error_spread(
        self,
        error: Tensor,
        core: Tensor,
        side: Tensor,
        spec: Spec,
        state: State,
        ctx: RankContext,
    ) -> Tensor:
        wide = Spec(spec.parts, spec.begin, spec.numel, torch.float64)
        error, core = error.double(), core.double().abs()
        largest = self.join(core + error, side, wide, state, ctx, ctx.rank)
        return largest - self.join(core, side, wide, state, ctx, ctx.rank)


def folded(shape: tuple[int, ...], fold: int) -> tuple[int, ...]:
    """Return a matrix as `fold` blocks of rows, where they divide it: (fold, rows / fold, columns);
    else as it is."""
    if fold and len(shape) == 2 and shape[0] % fold == 0 and shape[0] > fold:
        return fold, shape[0] // fold, shape[1]
    return shape


def cube(extent: Extent, fold: int) -> tuple[int, ...]:
    """Return a convolution as (outputs, inputs, kernel positions), a matrix folded or as it is."""
    shape = extent.part.shape or (1,)
    return (*shape[:2], math.prod(shape[2:])) if len(shape) > 2 else folded(shape, fold)


def leading(rows: Tensor, count: int) -> Tensor:
    """Return the leading directions of each matrix's rows: (k, n, m) -> (k, n, count), orthonormal.
    By products in float64, n × n."""
    wide = rows.double()
    basis: Tensor = torch.linalg.eigh(wide @ wide.mT).eigenvectors[..., -count:]  # ascending
    return basis.to(rows.dtype)
