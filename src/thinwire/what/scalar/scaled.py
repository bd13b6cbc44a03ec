"""Scale each block by one byte, before a codec that needs no scales of its own: `scaled(32) >>
nf4(0)`, 4.25 bits a value.

Steps, with S the span's largest scale, blocks of B values and p codes an octave:
    1. c of each block, one byte: its scale is s = S · 2^(-(254 - c) / p), the nearest to the
       block's largest magnitude (4.4 % apart).
    2. With a zero point: z of each block, one byte more: its values lie around o = s · z / 32,
       halfway between the ends, and s is the nearest to half the distance between them.
    3. The core: (v - o) / s, cut at ±1, for the codec to the right of `>>`.
    4. Back: s times what that decodes to, plus o.
With "near" the cut takes at most 2.2 % off a block's largest values; with "cover" s is the next
scale above, and nothing is cut; for a grid that `fit` names s and o are those of least squared
error, which may cut more. So small a scale makes small blocks cheap: 32 values and a byte take what
128 and a float32 do, and the fewer values share a scale, the closer it fits.

Source: scales of 8 bits under one of 32 as in QLoRA's double quantisation (Dettmers et al. 2023,
arXiv:2305.14314) and NVFP4; one byte for 32 values as in OCP Microscaling (Rouhani et al. 2023,
arXiv:2310.10537); a zero point as in Jacob et al. 2018, arXiv:1712.05877. Differs from them:
logarithmic scales, sixteen an octave; the zero point counts in parts of the scale, not in levels of
the grid.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from thinwire.core import RankContext, Spec, State, Traits
from thinwire.errors import StrategyError
from thinwire.kernels import reference
from thinwire.kernels.levels import nearest_index
from thinwire.what.scalar._levels import (
    Levels,
    length,
    rounding_slack,
    table,
    wrong_block,
)
from thinwire.what.scalar.fp4 import fp4
from thinwire.what.scalar.fp8 import fp8
from thinwire.what.scalar.nf4 import nf4
from thinwire.what.wrap.chain import Transform

_TOP, _LOST = 254, 255  # the code of S, and that of a block that is not finite
_TABLES: dict[str, Levels] = {
    "nf4": nf4(0),
    "e2m1": fp4("e2m1", 0),
    "e3m0": fp4("e3m0", 0),
    "e4m3": fp8("e4m3", 0),
    "e5m2": fp8("e5m2", 0),
}
# sixteenths of an octave below the first scale that cuts nothing
_BELOW = (0, 1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48)
# what a zero point counts in, parts of a scale, and how far: 4 scales to either side
_PARTS, _FAR = 32, 127
_CACHED = 2**16  # values that a CPU searches at a time, so few that they stay in its cache
_REACH = 1 + _FAR / _PARTS  # scales from zero to the furthest value that has a code


@dataclass(frozen=True)
class scaled(Transform):
    """Divide blocks by their scales, 1 byte a block and 4 a span (8 in float64 buckets); the next
    codec encodes the core, between -1 and 1.

    Args:
        block: values that share a scale, best 16 to 128; 0 means the whole span.
        fit: "near" the largest magnitude; "cover" it, so that nothing is cut and what follows stays
            unbiased; "mean", before floats, which are finest at zero: as "cover", around the
            block's mean; or the bits, 2 to 8, of the uniform grid that follows, or the format of
            `nf4`, `fp4` or `fp8` that does: the scale of least squared error.
        zero: a zero point a block, 1 byte more, for blocks that lie to one side of zero. The
            uniform grid that `fit` means is then "rise", which has 2^bits levels; else it is
            "tread", which has one less.
        octave: codes an octave, 16, 32 or 64: scales 4.4, 2.2 or 1.1 % apart, down to S / 57,000, S
            / 240 or S / 15.

    Raises:
        StrategyError: an argument outside the above.

    What follows needs no blocks of its own: `nf4(0)`, `fp4("e2m1", 0)`, `uniform(4, step=1 / 7)`,
    with a zero point `uniform(4, 0, grid="rise")`. A block whose scale would be smaller than the
    last is encoded on the grid of that one. A block that holds a NaN or an infinity decodes to NaN
    throughout.

    Example:
        >>> from thinwire.what import nf4, uniform
        >>> # 512 for the codes, 32 for the scales, 4 and 4
        >>> (scaled(32) >> nf4(0)).nbytes(Spec((), 0, 1024, torch.float32))
        552
        >>> # 32 more
        >>> codec = scaled(32, 4, zero=True) >> uniform(4, 0, grid="rise")
        >>> codec.nbytes(Spec((), 0, 1024, torch.float32))
        584
    """

    examples: ClassVar[tuple[str, ...]] = (
        'scaled(40, "nf4") >> nf4(0)',
        'scaled(16, "e3m0") >> fp4("e3m0", 0)',
        'scaled(0, "e5m2") >> fp8("e5m2", 0)',
        "scaled(16, 4) >> uniform(4, step=0.14285714285714285)",
        'scaled(32, "cover") >> fp4("e2m1", 0, rounding="stochastic")',
        "scaled(7, 2)",
        'scaled(0, "cover") >> uniform(3, 0, rounding="stochastic")',
        "scaled(32) >> nf4(0)",
        'scaled(32, "cover")',
        "scaled(16)",
        'scaled(16, 4, zero=True) >> uniform(4, 0, grid="rise")',
        'scaled(9, "mean", zero=True, octave=64) >> cast("fp16")',
        'scaled(32, "cover", zero=True, octave=32) >> uniform(3, 0, rounding="stochastic")',
        "scaled(24, 8, octave=64)",
        "scaled(0, zero=True)",
    )

    block: int = 32
    fit: int | Literal["near", "cover", "mean", "nf4", "e2m1", "e3m0", "e4m3", "e5m2"] = "near"
    zero: bool = False
    octave: Literal[16, 32, 64] = 16

    def __post_init__(self) -> None:
        reasons = wrong_block("scaled", self.block)
        if self.fit not in ("near", "cover", "mean", *_TABLES, *range(2, 9)):
            names, requested = ", ".join(map(repr, _TABLES)), f"scaled(fit={self.fit!r})"
            reasons.append(
                f"{requested}: choose 'near', 'cover' or 'mean', or what follows: bits of a "
                "uniform "
                f"grid, 2 to 8, or one of {names}"
            )
        if self.fit == "mean" and not self.zero:
            reasons.append(
                "scaled(fit='mean'): a mean is a zero point; say zero=True, or fit='cover'"
            )
        if self.octave not in (16, 32, 64):
            reasons.append(f"scaled(octave={self.octave!r}): choose 16, 32 or 64 codes an octave")
        if reasons:
            raise StrategyError(reasons)

    def __repr__(self) -> str:
        late = {"zero": False, "octave": 16}  # printed only where they are set
        settings = [
            field.name
            for field in fields(self)
            if getattr(self, field.name) != late.get(field.name)
        ]
        return f"scaled({', '.join(f'{name}={getattr(self, name)!r}' for name in settings)})"

    @cached_property
    def traits(self) -> Traits:
        return Traits(grain=self.block or 1, cuts=self._cuts)

    @property
    def _cuts(self) -> float:
        """The share of a block's reach, from its zero point to its furthest value, that may be cut
        off, at most."""
        lowest = 2 ** (-1 / self.octave)
        near = (1 - lowest) / (1 + lowest) + (1 / (2 * _PARTS) if self.zero else 0.0)
        furthest = _BELOW[-1] / 16 + (
            7 / 64 if self.zero or self.octave > 16 else 0
        )  # octaves; the nudges come on top
        return {"near": near + 1e-6, "cover": 0.0, "mean": 0.0}.get(str(self.fit), 1 - 2**-furthest)

    @property
    def keeps_mean(self) -> bool:
        return self.fit == "cover"  # alone its core is rounded to floats, always the same way

    def core_numel(self, spec: Spec) -> int:
        return spec.numel

    def side_nbytes(self, spec: Spec, core_numel: int) -> int:
        return spec.work.itemsize + (1 + self.zero) * self._blocks(spec) if spec.numel else 0

    def split(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> tuple[Tensor, Tensor]:
        if not spec.numel:
            return x.to(spec.work), torch.empty(0, dtype=torch.uint8, device=x.device)
        blocks = reference.to_blocks(x.to(spec.work).contiguous(), length(self.block, spec))
        top, codes, zeros = self._codes(blocks)
        core = _over(blocks, _scales(_steps(self.octave, x.device, spec.work), top, codes))
        parts = [reference.as_bytes(top), codes.to(torch.uint8)]
        if self.zero:
            core.sub_(zeros[:, None])
            parts.append((zeros * _PARTS + _FAR + 1).to(torch.uint8))
        return core.clamp_(-1, 1).view(-1)[: spec.numel], torch.cat(parts)

    def join(
        self, core: Tensor, side: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        if not spec.numel:
            return core
        blocks, scales = (
            reference.to_blocks(core, length(self.block, spec)),
            self.scales(side, spec)[:, None],
        )
        if not self.zero:
            return blocks.mul(scales).view(-1)[: spec.numel]
        most = torch.finfo(spec.work).max  # rounding may lead beyond it
        return (
            blocks.add(self.zeros(side, spec)[:, None])
            .mul_(scales)
            .clamp_(-most, most)
            .view(-1)[: spec.numel]
        )

    def scales(self, side: Tensor, spec: Spec) -> Tensor:
        """Return the scale of each block, NaN for one that is not finite: (m,)."""
        top = reference.from_bytes(side[: spec.work.itemsize], spec.work)
        return _scales(
            _steps(self.octave, side.device, spec.work),
            top,
            side[spec.work.itemsize :][: self._blocks(spec)],
        )

    def zeros(self, side: Tensor, spec: Spec) -> Tensor:
        """Return the zero point of each block, in scales: (m,)."""
        m = self._blocks(spec)
        return (
            (side[-m:].to(spec.work) - (_FAR + 1)) / _PARTS
            if self.zero
            else side.new_zeros(m, dtype=spec.work)
        )

    def _blocks(self, spec: Spec) -> int:
        return -(-spec.numel // length(self.block, spec))

    def _codes(self, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return S (1,), each block's code, 0 where all is zero, and its zero point in scales: (m,
        B) -> (m,) int64, (m,)."""
        low, high = blocks.aminmax(dim=1)  # hands NaN on
        furthest = torch.maximum(-low, high)
        sound = furthest.isfinite()
        low, high, furthest = (torch.where(sound, each, 0) for each in (low, high, furthest))
        half = (
            high / 2 - low / 2 if self.zero else furthest
        )  # each by itself: high - low may be no float
        middle = high / 2 + low / 2
        if self.fit == "mean":
            mean = _over(blocks, furthest).mean(1) * furthest
            reach = torch.maximum(high - mean, mean - low)
            half, middle = (
                torch.where(reach.isfinite(), a, b) for a, b in ((reach, half), (mean, middle))
            )
        size = torch.maximum(half, furthest / _REACH)
        top = size.max().view(1)
        if self.zero:
            top = (top * (1 + 1 / _PARTS)).clamp(
                max=torch.finfo(top.dtype).max
            )  # a zero point may lie 1/64 of a scale off
        steps = _steps(self.octave, blocks.device, blocks.dtype)
        fraction = size / torch.where(top > 0, top, 1)
        codes = torch.bucketize(fraction, steps).clamp_(
            1, _TOP
        )  # the first scale that cuts nothing
        if self.fit == "near":
            closer = (steps[codes] - fraction > fraction - steps[codes - 1]) & (
                size <= half
            )  # not where a zero point is out of reach
            codes -= closer.long() * (codes > 1)
        zeros = self._zeros(middle, _scales(steps, top, codes))
        if self.fit in ("cover", "mean") and self.zero:
            for _ in range(self.octave // 16):  # so many codes are more than 1/32
                scales = _scales(steps, top, codes)
                beyond = torch.maximum(_over(high, scales) - zeros, zeros - _over(low, scales)) > 1
                codes = (codes + beyond.long()).clamp_(max=_TOP)
                zeros = self._zeros(middle, _scales(steps, top, codes))
        elif self.fit not in ("near", "cover", "mean"):
            few = max(_CACHED // blocks.shape[1], 1) if blocks.device.type == "cpu" else len(blocks)
            cut = [each.split(few) for each in (blocks, codes, zeros)]
            best = [
                self._best(_over(own, _scales(steps, top, first)), steps, first, at)
                for own, first, at in zip(*cut, strict=True)
            ]
            codes, zeros = (torch.cat(each) for each in zip(*best, strict=True))
        codes = torch.where(size > 0, codes, 0)
        return top, torch.where(sound, codes, _LOST), torch.where(sound & (size > 0), zeros, 0)

    def _zeros(self, middle: Tensor, scales: Tensor) -> Tensor:
        """Return the zero point of blocks that lie around some values: (m,) -> (m,) in scales."""
        return _counted(_over(middle, scales)) if self.zero else torch.zeros_like(middle)

    def _best(
        self, unit: Tensor, steps: Tensor, first: Tensor, zeros: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the code and the zero point of least squared error on the grid of `fit`, of blocks
        over the scales of the codes `first`."""
        best, at, least = first, zeros, torch.full_like(zeros, float("inf"))

        def tried(codes: Tensor, zero: Tensor) -> None:
            nonlocal best, at, least
            ratio = (steps[codes] / steps[first])[:, None]
            rounded = (
                self._rounded((unit / ratio).sub_(zero[:, None])).add_(zero[:, None])
                if self.zero
                else self._rounded(unit / ratio)
            )
            error = rounded.mul_(ratio).sub_(unit).square_().sum(1)
            better = error < least
            best, at, least = (
                torch.where(better, codes, best),
                torch.where(better, zero, at),
                torch.minimum(error, least),
            )

        low, high = unit.aminmax(dim=1)
        mean = unit.mean(1)
        for below in _BELOW:
            codes = (first - below * self.octave // 16).clamp(min=1)
            ratio = steps[codes] / steps[first]
            middle = (low + high) / 2
            cuts = (
                middle,
                low + ratio,
                high - ratio,
                mean + (middle - mean) * ratio,
            )  # at both ends, at one, towards the mean
            for way in cuts if self.zero else (zeros,):
                tried(codes, _counted(way / ratio))
        for nudge in (4, 2, 1):
            for sign in (-nudge, nudge):
                if self.octave > 16 or self.zero:
                    tried((best + sign * self.octave // 64).clamp(1, _TOP), at)
                if self.zero:
                    tried(best, (at + sign / _PARTS).clamp(-_FAR / _PARTS, _FAR / _PARTS))
        return best, at

    def _rounded(self, core: Tensor) -> Tensor:
        """Return the levels of `fit` that are nearest to a core that may be too large for them."""
        if isinstance(self.fit, int):
            if self.zero:
                top = 2**self.fit - 1
                return core.add_(1).mul_(top / 2).round_().clamp_(0, top).mul_(2 / top).sub_(1)
            largest = 2 ** (self.fit - 1) - 1
            return core.mul_(largest).round_().clamp_(-largest, largest).div_(largest)
        levels = table(_TABLES[self.fit]).places[0].to(core)
        levels = levels / levels.abs().max()
        return levels[nearest_index(core, levels)]

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        if not spec.numel:
            return x.double()
        blocks = reference.to_blocks(x.double(), length(self.block, spec))
        side = self.split(x, spec, State(), ctx)[1]
        scales = self.scales(side, spec).double()[:, None]
        zeros = self.zeros(side, spec).double()[:, None]
        # what lies beyond the scale ends there
        cut = ((blocks - zeros * scales).abs() - scales).clamp(min=0)
        slack = rounding_slack(blocks.abs().amax(1, keepdim=True), 1.0, spec)
        return (cut + slack).reshape(-1)[: spec.numel]

    def error_spread(
        self,
        error: Tensor,
        core: Tensor,
        side: Tensor,
        spec: Spec,
        state: State,
        ctx: RankContext,
    ) -> Tensor:
        rows = reference.to_blocks(error.double(), length(self.block, spec))
        return rows.mul(self.scales(side, spec)[:, None]).view(-1)[: spec.numel]


def _over(x: Tensor, scales: Tensor) -> Tensor:
    """Return each value or block over its scale, zeros where that is no positive number."""
    usable, scales = scales > 0, torch.where(scales > 0, scales, 1)
    return (
        torch.where(usable[:, None], x / scales[:, None], 0)
        if x.dim() > 1
        else torch.where(usable, x / scales, 0)
    )


def _counted(zeros: Tensor) -> Tensor:
    """Round zero points to those that have a code."""
    return (zeros * _PARTS).round_().clamp_(-_FAR, _FAR).div_(_PARTS)


def _scales(steps: Tensor, top: Tensor, codes: Tensor) -> Tensor:
    """Return the scale of each code; NaN where a block is lost."""
    return steps[codes.long()] * top


@lru_cache(maxsize=16)
def _steps(octave: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the scale of each code over S, rising; the first is 0, the last NaN: (256,). Of 20
    bits, so that no machine rounds them otherwise."""
    with torch.inference_mode(False):
        parts = [round(2 ** (-i / octave) * 2**20) / 2**20 for i in range(octave)]
        shares = [
            parts[(_TOP - code) % octave] * 2.0 ** -((_TOP - code) // octave)
            for code in range(1, _TOP + 1)
        ]
        return torch.tensor([0.0, *shares, float("nan")], dtype=torch.float64).to(device, dtype)
