"""The bounds of the sparsifiers that are not in `known`."""

# ruff: noqa: ARG001  every bound takes the same four arguments, whether or not it needs them

from __future__ import annotations

import math

import torch
from torch import Tensor

from thinwire.core import RankContext, Spec
from thinwire.kernels import reference
from thinwire.testing.known import bound
from thinwire.what import blockk, ef21, sampled
from thinwire.what.sparse._share import kept


@bound.register
def _(codec: blockk, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    k = codec.core_numel(spec) // codec.block
    blocks = reference.to_blocks(x.double().abs(), codec.block)
    if k == len(blocks):
        return torch.zeros(spec.numel, dtype=torch.float64)
    norms = (blocks / blocks.max().clamp(min=1e-300)).norm(
        dim=1
    )  # squares of the smallest numbers would vanish
    last = norms.topk(k).values[-1] * (
        1 + 1e-5
    )  # the smallest that is kept; ties with it may be left out
    return torch.where(norms[:, None] <= last, blocks, 0).view(-1)[: spec.numel]


@bound.register
def _(codec: sampled, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    x = x.double().abs()
    sure = (
        math.ceil(kept(codec.density, spec.numel) / codec.band) - 1
    )  # these and more are sent, with one place for a NaN
    return torch.where(x <= x.topk(sure).values[-1], x, 0) if sure > 0 else x


@bound.register
def _(codec: ef21, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    error = bound(codec.inner, x, spec, ctx)
    return (
        error + 2**20 * x.double().abs().max() if spec.numel else error
    )  # what was said before, of any size; its own tests bound it
