"""Find where to cut blocks before they are rounded on a grid around zero, so that they err least:
natively, or in plain torch; both are equal bit for bit.

Candidates are fractions of a block's largest magnitude, each smaller than the one before. Errors
are of a block over that magnitude, where squares neither overflow nor vanish; they are summed by
halves (i and i + W/2, W the next power of two), so in one order on every machine.
"""

from __future__ import annotations

import torch
from torch import Tensor

from thinwire.kernels import memory, native

_WIDEST = 4096  # values of a block that a kernel takes


def best(rows: Tensor, absmax: Tensor, fractions: tuple[float, ...], top: float) -> Tensor:
    """Return the fraction of least squared error of each block; the first of equals: (m,).

    Args:
        rows: blocks (m, B).
        absmax: their largest magnitudes (m,).
        fractions: the candidates, falling.
        top: the largest level of the grid, in steps.
    """
    m, block = rows.shape
    choices = torch.tensor(fractions, dtype=rows.dtype)
    steps = torch.tensor([each / top for each in fractions], dtype=rows.dtype)
    kernels = native.library(rows) if block <= _WIDEST else None
    if kernels is not None:
        out = torch.empty(m)
        lows = -choices
        candidates = (len(fractions), *(each.data_ptr() for each in (choices, steps, lows)))
        to = (out.data_ptr(), torch.get_num_threads())
        kernels.lib.grid_clips(rows.data_ptr(), rows.numel(), block, 2 * top, *candidates, *to)
        return out
    unit = rows / torch.where(absmax > 0, absmax, 1)[:, None]
    grids = zip(steps.to(unit), (-choices).to(unit), strict=True)
    errors = [_error(unit, step, low, 2 * top) for step, low in grids]
    return choices.to(unit)[torch.stack(errors).argmin(0)]


def _error(unit: Tensor, step: Tensor, low: Tensor, last: float) -> Tensor:
    """Return the squared error of each block, rounded to nearest on a grid: (m,)."""
    m, block = unit.shape
    width = 1 << (block - 1).bit_length()
    squares = memory.empty(m * width, unit.dtype, unit.device).view(m, width).zero_()
    codes = ((unit - low) / step).round_().clamp_(0, last)
    torch.square(codes.mul_(step).add_(low).sub_(unit), out=squares[:, :block])
    while width > 1:
        width //= 2
        squares = squares[:, :width] + squares[:, width:]
    return squares[:, 0]
