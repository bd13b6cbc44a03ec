"""Round each value to a power of two, so that only its sign and exponent travel (natural
compression).

With |v| = 2^e (1 + f), 0 <= f < 1, the neighbours are 2^e and 2^(e+1).
Steps:
    1. the exponent field of the float, plus 1 with probability f (stochastic) or where f > 1/2
       (nearest).
    2. exponents packed, 8 bits each (11 of a float64), then signs, 1 bit each.
Stochastic: E[Q(v)] = v and E[(Q(v) - v)²] <= v²/8, for 2^-126 <= |v| <= 2^127. Nearest: |Q(v) - v|
<= |v|/3. No block, no scale, no division.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from thinwire.core import RankContext, Spec, State, Traits
from thinwire.errors import StrategyError
from thinwire.kernels import coarse, reference
from thinwire.what.scalar._direct import Direct
from thinwire.what.scalar._levels import wrong_rounding

_FORMATS = {
    torch.float32: (torch.int32, 8, 23),
    torch.float64: (torch.int64, 11, 52),
}  # its integer, bits of exponent and of mantissa


@dataclass(frozen=True)
class natural(Direct):
    """Signs and exponents: n + ceil(n/8) bytes, 9 bits a value (12 in float64 buckets).

    Args:
        rounding: "stochastic" (unbiased; drawn by (seed, step, key, rank)), or "nearest" (half the
            mean square error, biased).

    Raises:
        StrategyError: another rounding.

    A NaN or an infinity decodes to NaN, that value alone. Values below the smallest normal float
    round to it or to 0; those from 2^127 on round down (2^1023 in float64 buckets): the next power
    is no float.

    Example:
        >>> natural().nbytes(Spec((), 0, 1024, torch.float32))
        1152

    Source: Horváth et al. 2019, arXiv:1905.10988. Differs from the paper: subnormal values are
    rounded, not flushed; to nearest if asked.
    """

    examples: ClassVar[tuple[str, ...]] = (
        'natural("nearest")',
        "natural()",
    )

    rounding: reference.Rounding = "stochastic"

    def __post_init__(self) -> None:
        reasons = wrong_rounding("natural", self.rounding)
        if reasons:
            raise StrategyError(reasons)

    @cached_property
    def traits(self) -> Traits:
        random = self.rounding == "stochastic"
        return Traits(grain=8, randomised=random, unbiased=random, row_wise=True)

    def nbytes(self, spec: Spec) -> int:
        return reference.packed_nbytes(
            spec.numel, _FORMATS[spec.work][1]
        ) + reference.packed_nbytes(spec.numel, 1)

    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        key = ctx.rng_key(spec) if self.rounding == "stochastic" else None
        if (payload := coarse.natural_encode(x, key)) is not None:
            return payload
        # 1. The exponent field, plus 1 with the mantissa's fraction as probability.
        integer, exponent, mantissa = _FORMATS[spec.work]
        x = x.to(spec.work).contiguous()
        raw = (x.abs() + 0.0).view(integer)
        # The fraction of a subnormal lies between 0 and the smallest normal, and comes out right
        # too.
        fraction = (raw & (2**mantissa - 1)).to(spec.work) * 2.0**-mantissa
        noise: Tensor | float = 0.5
        if key is not None:
            noise = reference.noise(spec.numel, key).to(x)
        # 2. Clamp below the exponent of infinity; that one stands for whatever is not finite.
        codes = ((raw >> mantissa) + (noise < fraction)).clamp_(max=2**exponent - 2)
        codes.masked_fill_(~x.isfinite(), 2**exponent - 1)
        return torch.cat(
            [reference.pack(codes, exponent), reference.pack((x < 0).to(torch.uint8), 1)]
        )

    def _decoded(
        self, out: Tensor | None, payload: Tensor, spec: Spec, add: bool = False
    ) -> Tensor:
        if spec.work == torch.float32:
            made = coarse.natural_decode(payload, out, spec.numel, add)
            if made is not None:
                return made
        integer, exponent, mantissa = _FORMATS[spec.work]
        cut = reference.packed_nbytes(spec.numel, exponent)
        # An exponent with an empty mantissa is the power of two itself.
        codes = reference.unpack(payload[:cut], spec.numel, exponent)
        values = (codes.to(integer) << mantissa).view(spec.work)
        values = torch.where(reference.unpack(payload[cut:], spec.numel, 1).bool(), -values, values)
        values.masked_fill_(codes == 2**exponent - 1, float("nan"))
        return values if out is None else out.add_(values) if add else out.copy_(values)

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        size, info = x.double().abs(), torch.finfo(spec.work)
        least = info.smallest_normal
        # The power of two below, and the distance to it or to the one above.
        below = torch.exp2(size.clamp(min=least).log2().floor())
        if self.rounding == "nearest":
            return torch.where(size < least, least / 2, below / 2)
        return torch.where(
            size < least,
            torch.maximum(size, least - size),
            torch.maximum(size - below, 2 * below - size),
        )
