"""Quantise values to three levels: Q(v) = s · {-1, 0, 1}, five values in a byte.

Per block of B values a scale s; the payload is m scales (one a block) and ceil(n/5) bytes, since
3^5 = 243 <= 256. Steps, stochastic (TernGrad):
    1. s = max|v|, or where `clip` is given the smaller of that and clip · σ, σ the root mean
       square; |v| is cut at s.
    2. ±s with probability |v| / s, else 0: E[Q(v)] = v (of the cut v).
Steps, nearest (ternary weight networks):
    1. s = the mean of the magnitudes above 0.7 · mean|v|.
    2. ±s where |v| > s/2, else 0.
Then digits 0, 1, 2 for -s, 0, s, five to a byte in base 3, the first value in the lowest digit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from thinwire.core import RankContext, Spec, State, Traits
from thinwire.errors import PayloadError, StrategyError
from thinwire.kernels import coarse, memory, reference
from thinwire.what.scalar._direct import Direct
from thinwire.what.scalar._levels import length, rounding_slack, wrong_block, wrong_rounding

_DIGITS = (1, 3, 9, 27, 81)


@dataclass(frozen=True)
class ternary(Direct):
    """-s, 0 or s a value, and s a block: ceil(n/5) + 4·ceil(n/B) bytes (8· for float64 buckets),
    1.6 bits a value and the scales.

    Args:
        block: values that share a scale; 0 means the whole span.
        rounding: "stochastic" (unbiased; drawn by (seed, step, key, rank)), or "nearest" (far
            smaller error, biased).
        clip: cut magnitudes at this many root mean squares before stochastic rounding (TernGrad's
            is 2.5); biased, and a far smaller error.

    Raises:
        StrategyError: an argument outside the above, or `clip` with nearest rounding.

    A block that holds a NaN or an infinity decodes to NaN throughout.

    Example:
        >>> spec = Spec((), 0, 1280, torch.float32)
        >>> ternary(block=256).nbytes(spec)
        276

    Source: TernGrad, Wen et al. 2017, arXiv:1705.07878; nearest: Li et al. 2016, arXiv:1605.04711.
    Differs from the papers: a scale a block, not a layer; scales are not shared between ranks; base
    3, not 2 bits; Li's threshold is followed by rounding to the nearest.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "ternary(block=0)",
        "ternary(block=16, clip=2.5)",
        'ternary(rounding="nearest")',
        "ternary()",
    )

    block: int = 256
    rounding: reference.Rounding = "stochastic"
    clip: float | None = None

    def __post_init__(self) -> None:
        reasons = [*wrong_block("ternary", self.block), *wrong_rounding("ternary", self.rounding)]
        if self.clip is not None and not 0 < self.clip < float("inf"):
            reasons.append(
                f"ternary(clip={self.clip}): a number of root mean squares is positive and "
                "finite, such as 2.5"
            )
        if self.clip is not None and self.rounding == "nearest":
            reasons.append(
                "ternary(clip=…, rounding='nearest'): the scale to nearest is a mean, not the "
                "largest; leave clip out"
            )
        if reasons:
            raise StrategyError(reasons)

    @cached_property
    def traits(self) -> Traits:
        random = self.rounding == "stochastic"
        return Traits(
            grain=math.lcm(self.block or 1, len(_DIGITS)),
            randomised=random,
            unbiased=random and self.clip is None,
        )

    def nbytes(self, spec: Spec) -> int:
        return self._count(spec) * spec.work.itemsize + -(-spec.numel // len(_DIGITS))

    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        if not spec.numel:
            return torch.empty(0, dtype=torch.uint8, device=x.device)
        block, key = length(self.block, spec), None
        if self.rounding == "stochastic":
            key = ctx.rng_key(spec)
        # 1. A scale a block of magnitudes, and the scale of each value. A kernel finds the largest
        #    magnitude itself.
        if key is not None and self.clip is None:
            payload = coarse.ternary_encode(x, block, None, key)
            if payload is not None:
                return payload
        x = x.to(spec.work)
        size = reference.to_blocks(torch.abs(x, out=memory.empty_like(x)), block)
        scales = self.scales(size, spec.numel)
        if (payload := coarse.ternary_encode(x, block, scales, key)) is not None:
            return payload
        each = scales[:, None].expand_as(size).reshape(-1)[: spec.numel]
        # 2. Which values become ±s.
        if key is not None:
            draw = reference.noise(spec.numel, key).to(x)
            probability = torch.where(each > 0, x.abs() / torch.where(each > 0, each, 1), 0)
            far = draw < probability
        else:
            far = x.abs() > each / 2
        # 3. Digits 0, 1, 2 for -s, 0, s.
        digits = torch.where(far, torch.where(x < 0, 0, 2), 1).to(torch.uint8)
        return torch.cat([reference.as_bytes(scales), pack_digits(digits)])

    def _decoded(
        self, out: Tensor | None, payload: Tensor, spec: Spec, add: bool = False
    ) -> Tensor:
        if not spec.numel:
            return torch.empty(0, dtype=spec.work, device=payload.device)
        block = length(self.block, spec)
        head = self._count(spec) * spec.work.itemsize
        # Only 0 to 242 are five digits; a larger byte would decode to a sixth one.
        if int(payload[head:].max()) >= 3 ** len(_DIGITS):
            raise PayloadError(
                f"{self!r}: a byte of {int(payload[head:].max())} where five digits of base 3 "
                "are; the payload is corrupted"
            )
        if spec.work == torch.float32:
            made = coarse.ternary_decode(payload, out, spec.numel, block, add)
            if made is not None:
                return made
        scales = reference.from_bytes(payload[:head], spec.work)
        digits = reference.to_blocks(unpack_digits(payload[head:], spec.numel), block)
        values = (digits.to(spec.work) - 1).mul_(scales[:, None]).view(-1)[: spec.numel]
        return values if out is None else out.add_(values) if add else out.copy_(values)

    def scales(self, size: Tensor, n: int) -> Tensor:
        """Return the scale of each block of magnitudes (m, B), of which the first n count; NaN
        where one is not finite: (m,)."""
        absmax = size.amax(1)
        scales = torch.where(absmax.isfinite(), absmax, torch.full_like(absmax, float("nan")))
        nearest = self.rounding == "nearest"
        if not nearest and self.clip is None:
            return scales
        # Over the largest, so that no sum overflows.
        made = coarse.ternary_means(size, n, squares=not nearest)
        if made is None:
            unit = size / torch.where(absmax > 0, absmax, 1)[:, None]
            means = reference.block_means(unit if nearest else unit.square(), n)
        else:
            means = made[0]
        if self.clip is not None:
            return scales * (self.clip * means.sqrt()).clamp(max=1)
        if made is None:
            large = unit > 0.7 * means[:, None]
            masked, counts = torch.where(large, unit, 0), large.sum(1)
        else:
            _, masked, counts = made
        return masked.sum(1) / counts.clamp(min=1) * scales

    def _count(self, spec: Spec) -> int:
        """Return the scales sent: one a block."""
        return -(-spec.numel // length(self.block, spec))

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        size = reference.to_blocks(x.double().abs(), length(self.block, spec))
        scales = self.scales(size, spec.numel)[:, None] if spec.numel else size
        off = (scales - size).abs()
        error = torch.minimum(size, off)
        if self.rounding == "stochastic":  # either end, or the scale where it is cut
            error = torch.where(size > scales, size - scales, torch.maximum(size, off))
        slack = rounding_slack(size.amax(1, keepdim=True), 1.0, spec)
        return (error + slack).reshape(-1)[: spec.numel]


def pack_digits(digits: Tensor) -> Tensor:
    """Pack n digits 0, 1 or 2, five in a byte: (ceil(n/5),) uint8.

    Example:
        >>> pack_digits(torch.tensor([1, 2, 0, 0, 0, 2])).tolist()
        [7, 2]
    """
    # Digit i counts 3^i: the first value is the lowest digit.
    rows = reference.to_blocks(digits.to(torch.uint8), len(_DIGITS))
    out = rows[:, 0].clone()
    for i in range(1, len(_DIGITS)):
        out += rows[:, i] * _DIGITS[i]
    return out


def unpack_digits(payload: Tensor, n: int) -> Tensor:
    """Undo `pack_digits`: (n,) uint8."""
    rows = torch.stack([payload // digit % 3 for digit in _DIGITS], 1)
    return rows.view(-1)[:n]
