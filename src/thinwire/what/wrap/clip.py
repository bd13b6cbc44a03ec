"""Scale a contribution that is too long down before it is encoded, so that no rank's outlier rules
the sum.

Steps, for each part (or for the span as a whole), with x this rank's values:
    1. n = ||x||, and the bound b: `norm` itself, or `times` the median of the last `window` n
    2. encode x · min(1, b/n) with the inner codec
Its place among the wrappers decides what becomes of the rest:
    clip(feedback(topk(0.01)), …)   what is cut off is gone: an outlier never enters the residual
    feedback(clip(topk(0.01), …))   what is cut off waits in the residual: an outlier is sent bit by
                                    bit, and all of it in the end
    clip(dgc(topk(0.001)), …)       local gradient clipping, as in Deep Gradient Compression
    ef21(clip(identity(), …))       Clip21 (Khirirat et al. 2023, arXiv:2305.18929): what is known
                                    of x moves by b at most
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from thinwire.core import (
    Codec,
    Leaf,
    Outcome,
    RankContext,
    Rounds,
    Spec,
    State,
    Traits,
    needs_input_later,
)
from thinwire.errors import StrategyError
from thinwire.what.wrap._wrap import KeepsResidual, Wrapper

_WINDOW = 16
_CACHED = 1 << 16


@dataclass(frozen=True, repr=False)
class clip(Wrapper, KeepsResidual):
    """Contributions of a bounded L2 norm, through the inner codec: its bytes; state of 8 bytes ·
    `window` a part with `times`, else none.

    Args:
        inner: any codec, one that loses nothing included.
        norm: the longest that a contribution may be, in its units (a gradient times its weight
            share). Of K ranks whose noise is independent and a bound B on the norm of the mean, it
            is B/sqrt(K).
        times: instead, so many times the median of this rank's own last `window` norms, as they
            were before clipping (of an even number, the lower of the two in the middle). Nothing is
            clipped until there are as many. Zeros and what is not finite do not count.
        window: how many norms the median is of.
        per: "part" bounds each parameter by itself, whatever the bucket layout, and lets routes cut
            between parameters only; "span" bounds what a route sends at once: a slice of a bucket,
            or a rank's share of one.

    Raises:
        StrategyError: both or none of `norm` and `times`, one that is not positive and finite, a
            window below 1, or one without `times`.

    What lies within the bound passes bit for bit. Values that are not finite go to the inner codec
    as they are. The window is a rank's own, and starts anew in another world or bucket layout,
    where norms are others.

    Example:
        >>> from thinwire.what import feedback, topk
        >>> clip(feedback(topk(0.01)), times=2.0)
        clip(inner=feedback(inner=topk(k=0.01, per=0), decay=1.0), times=2.0)

    Source: Lin et al. 2018, arXiv:1712.01887, section 3.2 (`norm`, before all else); the code of
    SparseLoCo's training run (Lidin et al. 2026, arXiv:2603.08163) scales each parameter of a
    contribution to the median norm over ranks at most. Differs from it: the median is of one rank's
    past, as in AutoClip (Seetharaman et al. 2020, arXiv:2007.14469), which takes no message and no
    second decoding.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "clip(identity(), norm=2.0)",
        'clip(feedback(topk(0.1)), times=0.5, window=2, per="span")',
        "clip(lowrank(2), times=1.0, window=1)",
        "clip(dgc(topk(0.1)), norm=2.0)",
        "feedback(clip(topk(0.2), norm=3.0))",
        "ef21(clip(cast(), norm=5.0))",
        "by_role(matrix=clip(feedback(uniform(2)), norm=4.0))",
        "clip(uniform(4), norm=3.0)",
    )

    inner: Codec
    norm: float | None = None
    times: float | None = None
    window: int = _WINDOW
    per: Literal["part", "span"] = "part"

    def __post_init__(self) -> None:
        reasons = []
        if (self.norm is None) == (self.times is None):
            which = "neither" if self.norm is None else "both"
            reasons.append(
                f"clip(norm={self.norm}, times={self.times}): give norm= or times=, not {which}; "
                "for both, clip a clip(…)"
            )
        for name, value in (("norm", self.norm), ("times", self.times)):
            if value is not None and not 0 < value < math.inf:
                reasons.append(f"clip({name}={value}): a bound is positive and finite")
        if self.window < 1:
            reasons.append(f"clip(window={self.window}): a median is of at least 1 norm")
        if self.times is None and self.window != _WINDOW:
            reasons.append(
                f"clip(window={self.window}): only times= has a window; a fixed norm= is the "
                "bound itself"
            )
        if self.per not in ("part", "span"):
            reasons.append(f"clip(per={self.per!r}): choose 'part' or 'span'")
        if reasons:
            raise StrategyError(reasons)

    def __repr__(self) -> str:
        late = [
            field for field in fields(self)[1:] if getattr(self, field.name) != field.default
        ]  # printed only where they are set
        settings = "".join(f", {field.name}={getattr(self, field.name)!r}" for field in late)
        return f"clip(inner={self.inner!r}{settings})"

    @cached_property
    def traits(self) -> Traits:
        inner = self.inner.traits
        whole = self.per == "part" and inner.grain != "bucket"
        return replace(
            super().traits,
            grain="part" if whole else inner.grain,
            needs_input_later=not inner.lossy or needs_input_later(self.inner),
        )

    def init(self, spec: Spec, ctx: RankContext) -> State:
        # Zeros stand for norms that have not been: until the window is full, nothing is cut.
        state = State(children={"inner": self.inner.init(spec, ctx)})
        if self.times is not None:
            norms = torch.zeros(len(self._runs(spec)), self.window, dtype=torch.float64)
            state.leaves["norms"] = Leaf(norms, "private", part=spec.key)
        return state

    def rounds(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Rounds:
        x = x.to(spec.work)
        # 1. The norm of each run and its bound, from the norms before this one.
        norms = self._norms(x, spec)
        factors = self._factors(norms, state)
        if self.times is not None:
            # The window takes this norm in only now, so an outlier does not raise its own bound.
            # What is zero or not finite never enters.
            window = state["norms"].value  # (runs, window), the latest last
            later = torch.cat([window[:, 1:], norms[:, None]], 1)
            state["norms"].value = torch.where(
                (norms.isfinite() & (norms > 0))[:, None], later, window
            )
        # 2. The scaled contribution through the inner codec.
        outcome = yield from self.inner.rounds(
            self._scaled(x, factors, spec), spec, state.child("inner"), ctx
        )
        lossless = outcome.sent is None  # a route may have written the sum into what was sent
        return Outcome(
            outcome.total,
            (lambda: self._scaled(x, factors, spec).to(spec.dtype)) if lossless else outcome.sent,
        )

    def values_kept(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        x = x.to(spec.work)
        # The residual knows x only as it was cut.
        clipped = self._scaled(x, self._factors(self._norms(x, spec), state), spec)
        if not isinstance(self.inner, KeepsResidual):
            return clipped
        return self.inner.values_kept(clipped, spec, state.child("inner"), ctx)

    def residual_of(self, spec: Spec, state: State, ctx: RankContext, *, faded: bool) -> Tensor:
        if not isinstance(self.inner, KeepsResidual):
            return torch.full((spec.numel,), float("nan"), dtype=spec.work)
        return self.inner.residual_of(spec, state.child("inner"), ctx, faded=faded)

    def rounded_off(self, residual: Tensor) -> Tensor:
        if not isinstance(self.inner, KeepsResidual):
            return super().rounded_off(residual)
        return self.inner.rounded_off(residual)

    def _runs(self, spec: Spec) -> list[slice]:
        """Return what is bounded as one: the parts of the span, or all of it."""
        extents = list(spec.extents()) if self.per == "part" else []
        return [slice(extent.at, extent.at + extent.high - extent.low) for extent in extents] or [
            slice(0, spec.numel)
        ]

    def _norms(self, x: Tensor, spec: Spec) -> Tensor:
        """Return the L2 norm of each run: (runs,) float64."""
        return torch.stack([_norm(x[run]) for run in self._runs(spec)])

    def _factors(self, norms: Tensor, state: State) -> Tensor:
        """Return the factor of each run: (runs,) float64, at most 1."""
        if self.times is None:
            assert self.norm is not None
            bounds = torch.full_like(norms, self.norm)
        else:
            # A median of a window that is not full would cut the first steps by chance.
            window = state["norms"].value
            bounds = torch.where(
                (window > 0).all(1), self.times * window.median(1).values, math.inf
            )
        return torch.where(norms.isfinite(), (bounds / norms).clamp(max=1.0), 1.0)

    def _scaled(self, x: Tensor, factors: Tensor, spec: Spec) -> Tensor:
        out = torch.empty(spec.numel, dtype=spec.work, device=x.device)
        for run, factor in zip(self._runs(spec), factors, strict=True):
            torch.mul(x[run], factor, out=out[run])
        return out

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        # how long its last contributions were, x does not show: its own tests bound it closer
        return self.inner.error_bound(x, spec, ctx) + x.double().abs()


def _norm(x: Tensor) -> Tensor:
    """Return the norm in float64, where squares of float32 neither overflow nor vanish; those of
    float64 are taken of fractions of the largest."""
    norm: Tensor
    if x.dtype != torch.float64 or not x.numel():
        runs = (
            x.split(_CACHED) if x.device.type == "cpu" else (x,)
        )  # the float64 copy of a run stays in the cache: seven times as fast
        norm = torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(run, dtype=torch.float64) for run in runs])
        )
    else:
        largest = x.abs().amax()
        norm = torch.linalg.vector_norm(x / torch.where(largest > 0, largest, 1.0)) * largest
    return norm
