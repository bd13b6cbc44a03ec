"""Place the grid of `uniform`: which values share a step, and how large it is.

Legend: a run is (m, B), m blocks of B values, one after the other in the span; a span is a few
runs. `top` is the largest level in steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from thinwire.core import Spec
from thinwire.kernels import clips, memory, reference

Block = int | Literal["row"]
Scale = Literal["absmax", "norm", "percentile", "sigma", "mse", "range"]
Run = tuple[int, int, int]
"""Where it begins, m and B."""

_SHRINK = tuple(
    2 ** (-i / 4) for i in range(16)
)  # the candidates of "mse": the whole range, down to a 13th of it

_NUDGE = tuple(
    2 ** (i / 64) for i in (10, 6, 3, 1, -1, -3, -6, -10)
)  # from there, of one end at a time


def runs(spec: Spec, block: Block) -> Iterator[Run]:
    """Yield the blocks of a span in order, those of one length together; a row is what one entry of
    a part's first dimension holds.

    Example:
        >>> from thinwire.core import Part
        >>> parts = (Part("w", (3, 4), 0, "matrix"), Part("b", (3,), 12, "vector"))
        >>> spec = Spec(parts, 0, 15, torch.float32)
        >>> list(runs(spec, "row")), list(runs(spec.span(2, 15), "row")), list(runs(spec, 4))
        ([(0, 3, 4), (12, 1, 3)], [(0, 1, 2), (2, 2, 4), (10, 1, 3)], [(0, 3, 4), (12, 1, 3)])
    """
    if block != "row":
        yield from _cut(0, 0, spec.numel, block or max(spec.numel, 1))
    elif not spec.parts:
        yield from _cut(0, 0, spec.numel, max(spec.numel, 1))
    else:
        for extent in spec.extents():
            shape = extent.part.shape
            columns = extent.part.numel // shape[0] if len(shape) > 1 else extent.part.numel
            yield from _cut(extent.at, extent.low, extent.high, columns)


def symmetric_steps(
    rows: Tensor, bits: int, grid: reference.Grid, scale: Scale, at: float | None
) -> Tensor:
    """Return the step of each block on a grid around zero, NaN where the block is not finite. (m,
    B) -> (m,)."""
    if scale == "absmax":
        return reference.block_steps(rows, bits, grid)
    # Each other rule gives the fraction of absmax at which values are cut; it is taken of the block
    # over its absmax, where squares neither overflow nor vanish.
    top = reference.levels(bits, grid)[1]
    if scale == "mse":
        size = memory.empty(rows.numel(), rows.dtype, rows.device).view(rows.shape)
        absmax = torch.abs(rows, out=size).amax(1)
        fraction = clips.best(rows, absmax, _SHRINK, top)
        return _finite(absmax * fraction / top, absmax)
    absmax, unit = _unit(rows)
    if scale == "norm":
        fraction = unit.norm(dim=1)
    elif scale == "percentile":
        fraction = unit.abs().kthvalue(_nth(rows, at)).values
    else:
        fraction = ((at or 0.0) * unit.square_().mean(1).sqrt()).clamp(max=1)
    return _finite(absmax * fraction / top, absmax)


def affine_grid(rows: Tensor, bits: int, scale: Scale, at: float | None) -> tuple[Tensor, Tensor]:
    """Return the lowest level and the step of each block, NaN where the block is not finite. (m, B)
    -> (m,), (m,)."""
    top = 2**bits - 1
    low, high = _ends(rows, scale, at)
    # Search one fraction for both ends: they shrink towards the mean together.
    if scale == "mse":
        absmax, unit = _unit(rows)
        mean = unit.mean(1)
        below, above = mean - unit.amin(1), unit.amax(1) - mean
        grids = [
            (((below + above) * c / top)[:, None], (mean - below * c)[:, None]) for c in _SHRINK
        ]
        fraction = _best(unit, grids, top)
        low, high = (
            torch.maximum((mean - below * fraction) * absmax, low),
            torch.minimum((mean + above * fraction) * absmax, high),
        )
    # A block with a NaN or an infinity gets NaN for both numbers, and so decodes to NaN.
    size = rows.abs().amax(1)  # amax hands NaN on
    # Each by itself: their difference may be no float.
    return _finite(low, size), _finite(high / top - low / top, size)


def point_grid(
    rows: Tensor, bits: int, scale: Scale, at: float | None, cover: bool
) -> tuple[Tensor, Tensor]:
    """Return the code of zero and the step of each block, NaN where the block is not finite. (m, B)
    -> (m,) uint8, (m,).

    cover: every value that is not cut by `scale` lies between two levels; else up to half a step
    beyond the last one.
    """
    # 1. The range to cover. 2. The whole number of steps below zero that fits it best.
    top = 2**bits - 1
    low, high = _ends(rows, scale, at)
    if scale == "mse":
        low, high = _best_ends(rows, top)
    zero, step = _around_zero(low, high, top, cover)
    return zero.nan_to_num(0).to(torch.uint8), _finite(step, rows.abs().amax(1))


def _ends(rows: Tensor, scale: Scale, at: float | None) -> tuple[Tensor, Tensor]:
    """Return where each end of a block is cut, by "percentile" or "sigma": (m, B) -> (m,), (m,);
    else its lowest and highest value."""
    low, high = rows.aminmax(dim=1)
    # Both ends by the same count of values, from below and from above.
    if scale == "percentile":
        n = _nth(rows, at)
        return rows.kthvalue(rows.shape[1] + 1 - n).values, rows.kthvalue(n).values
    # `at` sigmas on each side of the mean, but never beyond the values themselves.
    if scale == "sigma":
        absmax, unit = _unit(rows)
        mean = unit.mean(1)
        reach = (at or 0.0) * (unit - mean[:, None]).square().mean(1).sqrt()
        below, above = (
            torch.minimum(mean - unit.amin(1), reach),
            torch.minimum(unit.amax(1) - mean, reach),
        )
        return torch.maximum((mean - below) * absmax, low), torch.minimum(
            (mean + above) * absmax, high
        )
    return low, high


def _around_zero(low: Tensor, high: Tensor, top: int, cover: bool) -> tuple[Tensor, Tensor]:
    """Return how many of `top` steps lie below zero, and the step: (m,), (m,)."""
    below, above = (-low).clamp(min=0), high.clamp(min=0)
    span = below / top + above / top  # each by itself: their sum may be no float
    # Where zero lies, in steps above the lowest level, before it is rounded.
    exact = torch.where(span > 0, below / torch.where(span > 0, span, 1), 0)
    if not cover:
        return exact.round(), span
    # With `cover` no value may be cut: of the two whole numbers around `exact`, that of the smaller
    # step, where the step is as large as the longer side needs.
    best, least = exact, torch.full_like(span, float("inf"))
    # A level on each side that needs one.
    fewest, most = (
        (below > 0).to(exact),
        top - (above > 0).to(exact),
    )
    for whole in (exact.floor(), exact.ceil()):
        zero = torch.minimum(torch.maximum(whole, fewest), most)
        step = torch.maximum(below / zero.clamp(min=1), above / (top - zero).clamp(min=1))
        best, least = torch.where(step < least, zero, best), torch.minimum(step, least)
    return best, least


def _cut(at: int, low: int, high: int, columns: int) -> Iterator[Run]:
    """Cut the entries `low` to `high` of rows of so many columns, lying at `at`: the end of a row,
    whole rows, the beginning of one."""
    first = min(-(-low // columns) * columns, high)
    rows, tail = divmod(high - first, columns)
    for begin, m, size in ((low, 1, first - low), (first, rows, columns), (high - tail, 1, tail)):
        if m * size:
            yield at + begin - low, m, size


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return absmax (m,), and the blocks over it, so that squares neither overflow nor vanish."""
    size = memory.empty(rows.numel(), rows.dtype, rows.device).view(rows.shape)
    absmax = torch.abs(rows, out=size).amax(1)
    return absmax, torch.div(rows, torch.where(absmax > 0, absmax, 1)[:, None], out=size)


def _nth(rows: Tensor, percentile: float | None) -> int:
    assert percentile is not None
    return max(math.ceil(percentile / 100 * rows.shape[1]), 1)


def _best(unit: Tensor, grids: list[tuple[Tensor, Tensor]], top: float) -> Tensor:
    """Return, of the candidates (steps, lowest level), the fraction whose rounding to nearest has
    the smallest squared error: (m,)."""
    errors = [_error(unit, step, low, top) for step, low in grids]
    return torch.tensor(_SHRINK).to(unit)[torch.stack(errors).argmin(0)]


def _error(unit: Tensor, step: Tensor, low: Tensor, top: float) -> Tensor:
    """Return the squared error of each block on a grid of `top` steps: (m,)."""
    return (
        ((unit - low) / step.clamp(min=1e-30))
        .round_()
        .clamp_(0, top)
        .mul_(step)
        .add_(low)
        .sub_(unit)
        .square_()
        .sum(1)
    )


def _best_ends(rows: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Return where the ends of a grid with a zero point lie best: of three families of 16 first,
    then each by itself. (m, B) -> (m,), (m,)."""
    absmax, unit = _unit(rows)
    ends = torch.stack(unit.aminmax(dim=1))  # (2, m)
    # The grid around zero, one level more.
    even = torch.stack([-torch.ones_like(absmax), torch.full_like(absmax, (top + 1) / (top - 1))])
    best, least = ends, torch.full_like(absmax, float("inf"))

    # Whatever is tried replaces the best so far in the blocks where its error is smaller.
    def better(tried: Tensor) -> None:
        nonlocal best, least
        zero, step = _around_zero(tried[0], tried[1], top, cover=False)
        error = _error(unit, step[:, None], (-zero * step)[:, None], top)
        best, least = torch.where(error < least, tried, best), torch.minimum(error, least)

    # 1. Three families: both ends scaled, both cut at c, the symmetric one with a level more,
    # scaled.
    for c in _SHRINK:
        for tried in (ends * c, ends.clamp(-c, c), even * c):
            better(tried)
    # 2. Move one end at a time from the best so far, twice over.
    for side in (0, 1, 0, 1):
        begun = best
        for fraction in _NUDGE:
            tried = begun.clone()
            tried[side] *= fraction
            better(tried)
    return best[0] * absmax, best[1] * absmax


def _finite(values: Tensor, size: Tensor) -> Tensor:
    return torch.where(size.isfinite(), values, torch.full_like(values, float("nan")))
