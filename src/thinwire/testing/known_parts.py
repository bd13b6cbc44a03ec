"""The bounds of the codecs that see parameters as matrices, and of those that say several values in
one."""

# ruff: noqa: ARG001  every bound takes the same four arguments, whether or not it needs them

from __future__ import annotations

import torch
from torch import Tensor

from thinwire.core import RankContext, Spec, State
from thinwire.kernels import reference
from thinwire.testing.known import bound, spread_of
from thinwire.what import alternating, codebook, dct, lattice
from thinwire.what.lowrank._factored import Factored
from thinwire.what.lowrank._parts import run, runs


@bound.register
def _(codec: dct, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    return (
        8
        * codec.size
        * torch.finfo(spec.work).eps
        * _norms(codec, codec.split(x.double(), _wide(spec), State(), ctx)[0], spec)
    )


@bound.register
def _(codec: Factored | alternating, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    error = torch.zeros(spec.numel, dtype=torch.float64)
    for piece in filter(codec.shrinks, spec.pieces()):
        run(error, piece)[:] = _norm(run(x, piece).double()) * (
            1 + 1e-5
        )  # a projection never makes a matrix longer
    return error


@bound.register
def _(codec: lattice, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    if not spec.numel:
        return torch.zeros(0, dtype=torch.float64)
    size, info = codec._block(spec), torch.finfo(spec.work)
    blocks = reference.to_blocks(x.to(spec.work).contiguous(), size)
    step, blocks = codec._steps(blocks).double()[:, None], blocks.double().abs()
    slack = (16 * blocks.amax(1, keepdim=True) + 4 * codec._top * info.smallest_normal) * info.eps
    beyond = (blocks - codec._top * step).clamp(min=0).nan_to_num(0, 0, 0)
    unit = beyond.amax().clamp(min=1e-300)
    beyond = (beyond / unit).view(len(blocks), -1, codec._size).norm(dim=2).repeat_interleave(
        codec._size, 1
    ) * unit
    error = (2**0.5 * step + beyond + slack) * (blocks.amax(1, keepdim=True) > 0)
    flat: Tensor = error.reshape(-1)[: spec.numel]
    return flat


@bound.register
def _(codec: codebook, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    error, info = torch.empty(spec.numel, dtype=torch.float64), torch.finfo(spec.work)
    for at, rows, columns in runs(spec):
        blocks = reference.to_blocks(x[at : at + rows * columns].double(), codec.block)
        largest = blocks.abs().amax(1, keepdim=True).clamp(min=1e-300)
        length = (
            (blocks / largest).square().sum(1, keepdim=True).sqrt() * largest * (1 + 1e-5)
        )  # the best scale never makes a block longer
        length += (length > 1e-290) * 16 * info.smallest_normal * info.eps
        error[at : at + rows * columns] = length.expand_as(blocks).reshape(-1)[: rows * columns]
    return error


@spread_of.register
def _(
    first: dct,
    inner: Tensor,
    core: Tensor,
    side: Tensor,
    spec: Spec,
    state: State,
    ctx: RankContext,
) -> Tensor:
    return _norms(
        first, inner.double(), spec
    )  # orthonormal: no value is further off than all frequencies together


@spread_of.register
def _(
    first: Factored,
    inner: Tensor,
    core: Tensor,
    side: Tensor,
    spec: Spec,
    state: State,
    ctx: RankContext,
) -> Tensor:
    wide, inner, core = _wide(spec), inner.double(), core.double().abs()
    return first.join(core + inner, side, wide, state, ctx, ctx.rank) - first.join(
        core, side, wide, state, ctx, ctx.rank
    )


def _wide(spec: Spec) -> Spec:
    return Spec(spec.parts, spec.begin, spec.numel, torch.float64)


def _norm(x: Tensor) -> Tensor:
    largest = x.abs().max().clamp(min=1e-300)  # squares of the smallest numbers would vanish
    length: Tensor = (x / largest).norm() * largest
    return length


def _norms(codec: dct, core: Tensor, spec: Spec) -> Tensor:
    """The length of each tile of a core, at every value of the tile: (spec.numel,) float64."""
    out, at = torch.empty(spec.numel, dtype=torch.float64), 0
    for tiles in codec._tiles(spec):
        place = tiles.of(out)
        own = core[at : at + place.numel()].view(place.shape)
        largest = own.abs().amax((2, 3), keepdim=True).clamp(min=1e-300)
        place[:] = (own / largest).square().sum(
            (2, 3), keepdim=True
        ).sqrt() * largest + torch.finfo(spec.work).tiny
        at += place.numel()
    return out
