"""The bounds of the codecs of few levels: tables under block scales, signs, three levels, powers of
two, and the rotation before them."""

# ruff: noqa: ARG001  every bound takes the same four arguments, whether or not it needs them

from __future__ import annotations

import torch
from torch import Tensor

from thinwire.core import RankContext, Spec, State
from thinwire.kernels import reference
from thinwire.testing.known import bound, spread_of
from thinwire.what import budget, hadamard, natural, scaled, sign, ternary, uniform
from thinwire.what.lowrank._parts import run
from thinwire.what.scalar._levels import Levels, length, table


@bound.register
def _(codec: Levels, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    levels, _ = table(codec)
    blocks, top = reference.to_blocks(x.double(), length(codec.block, spec)), levels.abs().max()
    absmax = blocks.abs().amax(1, keepdim=True)
    scaled = torch.where(absmax > 0, blocks / absmax * top, 0).clamp(-top, top)
    gaps = [
        _gap(scaled + near, levels) for near in (-1e-6 * top, 1e-6 * top)
    ]  # a value on a level may be taken for one beside it
    error = (0.5 if codec.rounding == "nearest" else 1.0) * torch.maximum(*gaps) * absmax / top
    return (error + _slack(absmax, float(top), spec)).reshape(-1)[: spec.numel]


@bound.register
def _(codec: budget, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    """Which width a piece has, all pieces decide together: no value is further off than in the
    least one."""
    least = uniform(next(filter(None, codec.choices)), codec.block, codec.rounding)  # type: ignore[arg-type]  # one of its widths
    if not spec.parts:
        return torch.maximum(bound(least, x, spec, ctx), x.double().abs() * codec.drops)
    error = x.double().abs() * codec.drops
    for piece in spec.pieces():  # no block crosses a parameter
        own = run(x, piece)
        run(error, piece)[:] = torch.maximum(
            run(error, piece), bound(least, own, Spec((), 0, own.numel(), spec.dtype), ctx)
        )
    return error


@bound.register
def _(codec: sign, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    size = reference.to_blocks(x.double().abs(), length(codec.block, spec))
    scales = reference.block_means(size, spec.numel)[:, None] if spec.numel else size
    return ((size - scales).abs() + _slack(scales, 1.0, spec)).reshape(-1)[: spec.numel]


@bound.register
def _(codec: ternary, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    size = reference.to_blocks(x.double().abs(), length(codec.block, spec))
    scales = codec.scales(size, spec.numel)[:, None] if spec.numel else size
    near, far = (
        torch.minimum(size, (scales - size).abs()),
        torch.maximum(size, (scales - size).abs()),
    )
    error = (
        torch.where(size > scales, size - scales, far) if codec.rounding == "stochastic" else near
    )
    return (error + _slack(size.amax(1, keepdim=True), 1.0, spec)).reshape(-1)[: spec.numel]


@bound.register
def _(codec: natural, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    size, info = x.double().abs(), torch.finfo(spec.work)
    below = torch.exp2(size.clamp(min=info.smallest_normal).log2().floor())
    error = torch.where(
        size < info.smallest_normal,
        torch.maximum(size, info.smallest_normal - size),
        torch.maximum(size - below, 2 * below - size),
    )
    return (
        error
        if codec.rounding == "stochastic"
        else torch.where(size < info.smallest_normal, info.smallest_normal / 2, below / 2)
    )


@bound.register
def _(codec: hadamard, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    info = torch.finfo(spec.work)
    tiny = codec.block * info.smallest_normal * info.eps
    core = x.new_zeros(codec.core_numel(spec), dtype=torch.float64)
    core[: spec.numel] = x.abs()
    return _turned(codec, core, spec) * info.eps * 2 * codec.block.bit_length() + tiny


@bound.register
def _(codec: scaled, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    if not spec.numel:
        return x.double()
    blocks, side = (
        reference.to_blocks(x.double(), length(codec.block, spec)),
        codec.split(x, spec, State(), ctx)[1],
    )
    scales, zeros = (
        codec.scales(side, spec).double()[:, None],
        codec.zeros(side, spec).double()[:, None],
    )
    cut = ((blocks - zeros * scales).abs() - scales).clamp(
        min=0
    )  # what lies beyond the scale ends there
    return (cut + _slack(blocks.abs().amax(1, keepdim=True), 1.0, spec)).reshape(-1)[: spec.numel]


@spread_of.register
def _(
    first: scaled,
    inner: Tensor,
    core: Tensor,
    side: Tensor,
    spec: Spec,
    state: State,
    ctx: RankContext,
) -> Tensor:
    return (
        reference.to_blocks(inner.double(), length(first.block, spec))
        .mul(first.scales(side, spec)[:, None])
        .view(-1)[: spec.numel]
    )


@spread_of.register
def _(
    first: hadamard,
    inner: Tensor,
    core: Tensor,
    side: Tensor,
    spec: Spec,
    state: State,
    ctx: RankContext,
) -> Tensor:
    return _turned(first, inner.double(), spec)


def _gap(scaled: Tensor, levels: Tensor) -> Tensor:
    """The distance between the two levels that a value lies between."""
    low = (torch.bucketize(scaled, levels, right=True) - 1).clamp(0, len(levels) - 2)
    return levels[low + 1] - levels[low]


def _slack(size: Tensor, top: float, spec: Spec) -> Tensor:
    """What float arithmetic may add where a block's largest magnitude is `size`, and its scale may
    be subnormal."""
    info = torch.finfo(spec.work)
    return (8 * info.eps * size + 2 * top * info.smallest_normal * info.eps) * (size > 0)


def _turned(codec: hadamard, core: Tensor, spec: Spec) -> Tensor:
    """No value of a rotated block is longer than the block: (spec.numel,)."""
    full, out = codec._full(spec), []
    for part in (core[:full].view(-1, codec.block), core[full:].view(1, -1)):
        if part.numel():
            largest = part.amax(1, keepdim=True).clamp(
                min=1e-300
            )  # squares of the smallest and the largest numbers would vanish
            out.append(
                ((part / largest).norm(dim=1, keepdim=True) * largest).expand_as(part).reshape(-1)
            )
    return torch.cat(out)[: spec.numel] if out else core
