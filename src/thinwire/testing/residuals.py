"""Read residuals and bounds off a codec, for the checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from thinwire.core import Codec, RankContext, Spec, State
from thinwire.what.wrap._wrap import KeepsResidual

Bound: TypeAlias = Callable[[Tensor, Spec, RankContext], Tensor]
"""|sent - x| allowed of each value, from (x, spec, ctx): (spec.numel,) float64."""


def values_kept(codec: Codec, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
    """Return what of `x` is either sent or kept in a residual: (spec.numel,) spec.work."""
    if isinstance(codec, KeepsResidual):
        return codec.values_kept(x, spec, state, ctx)
    return x.to(spec.work)


def residual(codec: Codec, state: State, spec: Spec, ctx: RankContext, *, faded: bool) -> Tensor:
    """Return the residual of each value, NaN where none is kept: (spec.numel,) spec.work.

    faded: return what of it the flight of this `ctx` adds to its input.

    Example:
        >>> from thinwire.what import feedback, topk
        >>> spec, ctx = Spec((), 0, 2, torch.float32), RankContext(0, (0,), step=0, seed=0)
        >>> codec = feedback(topk(1))
        >>> residual(codec, codec.init(spec, ctx), spec, ctx, faded=False)
        tensor([0., 0.])
    """
    if isinstance(codec, KeepsResidual):
        return codec.residual_of(spec, state, ctx, faded=faded)
    return torch.full((spec.numel,), float("nan"), dtype=spec.work)


def rounded_off(codec: Codec, residual: Tensor) -> Tensor:
    """Bound what storing a residual may have rounded off: (spec.numel,) float64.

    Example:
        >>> from thinwire.what import feedback, topk
        >>> held = torch.tensor([1.0, -254.0])
        >>> [rounded_off(feedback(topk(1), store=s), held).tolist() for s in (None, "bf16", "int8")]
        [[0.0, 0.0], [0.00390625, 0.9921875], [1.0, 1.0]]
    """
    if isinstance(codec, KeepsResidual):
        return codec.rounded_off(residual)
    return torch.zeros_like(residual, dtype=torch.float64)
