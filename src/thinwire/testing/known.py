"""What the checks know of Thinwire's own codecs: how much each may lose, whether it is unbiased,
whether it randomised lots."""

# ruff: noqa: ARG001  every bound takes the same four arguments, whether or not it needs them

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import singledispatch
from typing import TypeAlias

import torch
from torch import Tensor

from thinwire.core import Codec, RankContext, Role, Spec, State
from thinwire.registry import inside
from thinwire.what import (
    Transform,
    budget,
    by_rank,
    by_role,
    cast,
    chain,
    clip,
    dgc,
    ef21,
    entropy,
    feedback,
    hadamard,
    identity,
    lowrank,
    natural,
    on_change,
    randomk,
    scaled,
    ternary,
    threshold,
    topk,
    uniform,
)
from thinwire.what.lowrank._factored import Factored
from thinwire.what.scalar._levels import Levels
from thinwire.what.scalar._scales import runs

Bound: TypeAlias = Callable[[Tensor, Spec, RankContext], Tensor]
"""|sent - x| allowed of each value, from (x, spec, ctx): (spec.numel,) float64."""


@singledispatch
def bound(codec: Codec, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    """The built-in bound of a codec: (spec.numel,) float64.

    Raises:
        TypeError: none is known; the caller states one.

    Example:
        >>> spec = Spec((), 0, 2, torch.float32)
        >>> bound(threshold(1.0), torch.tensor([0.5, 2.0]), spec, RankContext(0, (0,), 0, 0))
        tensor([0.5000, 0.0000], dtype=torch.float64)
    """
    raise TypeError(
        f"no error bound is known for {codec!r}: give error_bound=, the |sent - x| allowed of "
        "each value"
    )


@bound.register
def _(codec: identity, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    return (
        x.to(spec.dtype).double() - x.double()
    ).abs()  # nothing, unless x is wider than the bucket


@bound.register
def _(codec: cast, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    info = torch.finfo({"bf16": torch.bfloat16, "fp16": torch.float16}[codec.dtype])
    error = x.double().abs() * info.eps / 2 + info.smallest_normal * info.eps / 2
    return error.masked_fill(x.double().abs() > info.max, float("inf"))


@bound.register
def _(codec: uniform, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    share = 0.5 if codec.rounding == "nearest" else 1.0
    x, info = x.to(spec.work), torch.finfo(spec.work)
    if codec.step is not None:
        size = x.double().abs()
        last = (2 ** (codec.bits - 1) - 1) * codec.step
        return (
            torch.maximum(torch.full_like(size, share * codec.step), size - last)
            + 4 * info.eps * size
        )
    error = torch.zeros(spec.numel, dtype=torch.float64)
    count = 2**codec.bits - 1 - (codec.grid == "tread")
    for begin, m, width in runs(spec, codec.block):
        rows = x[begin : begin + m * width].reshape(m, width)
        lows, deltas = codec.levels(rows)
        rows, steps = rows.double(), deltas.double()[:, None]
        low = -count / 2 * steps if lows is None else lows.double()[:, None]
        cut = torch.maximum(
            low - rows, rows - low - count * steps
        )  # what lies beyond the last level ends there
        absmax = rows.abs().amax(1, keepdim=True)
        slack = (8 * info.eps * absmax + 2 * (count + 1) * info.smallest_normal * info.eps) * (
            absmax > 0
        )
        error[begin : begin + m * width] = (torch.maximum(share * steps, cut) + slack).view(-1)
    return error


@bound.register
def _(codec: topk, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    x, errors = x.double().abs(), []
    size = codec.per or max(spec.numel, 1)
    for chunk in x.split(size):
        kept = codec.core_numel(Spec((), 0, chunk.numel(), spec.dtype))
        last = chunk.topk(kept).values[
            -1:
        ]  # the smallest that is kept; ties with it may be left out
        errors.append(
            torch.where(chunk <= last, chunk, 0)
            if kept < chunk.numel()
            else torch.zeros_like(chunk)
        )
    return torch.cat(errors)[: spec.numel]


@bound.register
def _(codec: threshold, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    x = x.to(spec.work)
    return torch.where(x.abs() < codec.bar(x), x.abs(), 0).double()


@bound.register
def _(codec: randomk, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    scale = (
        -(-spec.numel // max(codec.core_numel(spec), 1)) if codec.unbiased else 1.0
    )  # the widest stratum
    return x.double().abs() * max(1.0, scale - 1.0) * (1 + 1e-6)


@bound.register
def _(codec: lowrank, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    error = torch.zeros(spec.numel, dtype=torch.float64)
    for piece in spec.pieces():
        own = slice(piece.at, piece.at + piece.high - piece.low)
        if f"q/{piece.part.name}" in codec.init(spec, ctx).leaves:
            largest = (
                x[own].double().abs().max().clamp(min=1e-300)
            )  # squares of the smallest numbers would vanish
            error[own] = (
                (x[own].double() / largest).norm() * largest * (1 + 1e-5)
            )  # a projection never makes a matrix longer
    return error


@bound.register
def _(codec: chain, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    state = codec.init(spec, ctx)
    core, side = codec.first.split(x, spec, state.child("first"), ctx)
    inner = bound(codec.second, core, Spec((), 0, core.numel(), spec.work), ctx.child(spec.key))
    spread = spread_of(codec.first, inner, core, side, spec, state.child("first"), ctx)
    return bound(codec.first, x, spec, ctx) + spread * (1 + 1e-6)


@singledispatch
def spread_of(
    first: Transform,
    inner: Tensor,
    core: Tensor,
    side: Tensor,
    spec: Spec,
    state: State,
    ctx: RankContext,
) -> Tensor:
    """What errors of up to `inner` of a transform's core values come to in its own values: where it
    only places them, those."""
    return first.join(inner.to(spec.work), side, spec, state, ctx, ctx.rank).double()


@bound.register
def _(codec: feedback | dgc | entropy, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    return bound(codec.inner, x, spec, ctx)


@bound.register
def _(codec: by_rank, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    return bound(codec.of(ctx.rank), x, spec, ctx)


@bound.register
def _(codec: by_role, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    error = torch.zeros(spec.numel, dtype=torch.float64)
    for role, sub, own in _by_role(codec, spec):
        error[own] = bound(codec._codecs[role], x[own], sub, ctx.child(role))
    return error


@bound.register
def _(codec: clip, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    return (
        bound(codec.inner, x, spec, ctx) + x.double().abs()
    )  # how long its last contributions were, x does not say; its own tests do


def given(codec: Codec, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
    """What is left of x for the codec that keeps a residual (after `clip`): (spec.numel,)
    spec.work."""
    x = x.to(spec.work)
    if isinstance(codec, clip):
        return given(codec.inner, codec.clipped(x, spec, state), spec, state.child("inner"), ctx)
    if isinstance(codec, by_role):
        x = x.clone()
        for role, sub, own in _by_role(codec, spec):
            x[own] = given(codec._codecs[role], x[own], sub, state.child(role), ctx)
    return x


def residual(codec: Codec, state: State, spec: Spec, ctx: RankContext, *, faded: bool) -> Tensor:
    """What feedback holds back of each value, or what of it the flight of this ctx takes up
    (`faded`); NaN where nothing is kept."""
    if isinstance(codec, clip):
        return residual(codec.inner, state.child("inner"), spec, ctx, faded=faded)
    if isinstance(codec, feedback) and (faded or ctx.step >= codec.start):
        leaf = state["residual"]
        return leaf.flat * codec.kept(state, ctx) if faded else leaf.flat.clone()
    if isinstance(codec, dgc):
        velocity, waiting = state["velocity"], state["residual"].value
        return waiting + velocity.value * velocity.fade if faded else waiting.clone()
    held = torch.full((spec.numel,), float("nan"), dtype=spec.work)
    if isinstance(codec, by_role):
        for role, sub, own in _by_role(codec, spec):
            held[own] = residual(codec._codecs[role], state.child(role), sub, ctx, faded=faded)
    return held


def _by_role(codec: by_role, spec: Spec) -> Iterator[tuple[Role, Spec, Tensor]]:
    """Each role that occurs, its span, and where its values lie in the whole."""
    for role, sub, pieces in codec._split(spec):
        yield role, sub, torch.cat([torch.arange(p.at, p.at + p.high - p.low) for p in pieces])


def rounded_off(codec: Codec, kept: Tensor) -> Tensor:
    """What may have been rounded off a residual as it was stored, at most: (spec.numel,) float64.

    Example:
        >>> kept = torch.tensor([1.0, -254.0])
        >>> [rounded_off(feedback(topk(1), store=store), kept).tolist() for store in (None, "bf16", "int8")]
        [[0.0, 0.0], [0.00390625, 0.9921875], [1.0, 1.0]]
    """
    kept = kept.double().abs().nan_to_num()
    stores = {member.store for member in inside(codec) if isinstance(member, feedback)}
    room = torch.zeros_like(kept)
    if "bf16" in stores:
        room += kept * torch.finfo(torch.bfloat16).eps / 2
    if "int8" in stores and kept.numel():
        room += kept.max() / 254 + torch.finfo(torch.float32).tiny
    return room


def cut_off(codec: Codec) -> float:
    """The share of a value that scales of one byte may cut off, at most: of a value just beyond
    one, which no probe need hold.

    Example:
        >>> round(cut_off(topk(1) >> scaled(16)), 3), cut_off(scaled(16, "cover")), cut_off(scaled(16, 4))
        (0.022, 0.0, 0.875)
    """
    return sum(member.cuts for member in inside(codec) if isinstance(member, scaled))


def is_unbiased(codec: Codec) -> bool:
    """The mean over randomised of what it sends is what it was given.

    Example:
        >>> is_unbiased(uniform(4)), is_unbiased(uniform(4, rounding="stochastic")), is_unbiased(randomk(3) >> cast())
        (False, True, False)
    """
    codec = codec.inner if isinstance(codec, entropy) else codec
    if isinstance(codec, uniform):
        return (
            codec.rounding == "stochastic"
            and codec.step is None
            and codec.scale in ("absmax", "norm")
        )
    if isinstance(codec, budget | Levels | natural | ternary):
        return (
            codec.rounding == "stochastic"
            and getattr(codec, "clip", None) is None
            and not codec.drops
        )
    if isinstance(codec, randomk):
        return codec.unbiased
    if isinstance(codec, chain):
        covered = (
            isinstance(codec.first, scaled) and codec.first.fit == "cover"
        )  # alone its core is rounded to floats, always the same way
        return (covered or is_unbiased(codec.first)) and is_unbiased(codec.second)
    if isinstance(codec, by_role):
        return all(map(is_unbiased, (codec.matrix, codec.embedding, codec.vector)))
    return isinstance(codec, identity | hadamard)


def loses_at_once(codec: Codec) -> bool:
    """It loses something in its first flight.

    Example:
        >>> loses_at_once(topk(1)), loses_at_once(on_change(topk(1))), loses_at_once(on_change(identity()))
        (True, True, False)
    """
    return loses_at_once(codec.inner) if isinstance(codec, on_change) else codec.lossy


def draws_lots(codec: Codec) -> bool:
    """What it sends depends on the step and the seed.

    Example:
        >>> draws_lots(feedback(topk(1) >> uniform(4, rounding="stochastic"))), draws_lots(topk(1))
        (True, False)
    """
    if isinstance(codec, uniform | budget | Levels | natural | ternary):
        return codec.rounding == "stochastic"
    if isinstance(codec, Factored):
        return codec.randomised
    if isinstance(codec, chain):
        return draws_lots(codec.first) or draws_lots(codec.second)
    if isinstance(codec, feedback | clip | dgc | ef21 | entropy):
        return draws_lots(codec.inner)
    if isinstance(codec, by_role | by_rank):
        return any(
            map(
                draws_lots,
                codec.codecs
                if isinstance(codec, by_rank)
                else (codec.matrix, codec.embedding, codec.vector),
            )
        )
    return isinstance(codec, randomk | hadamard)
