"""Encode by a fixed table of levels: a scale a block, the nearest level of each value, its code
packed.

A codec of this kind gives `_bits` and `_values`: which level each code stands for. Legend: n
values, B a block, m = ceil(n / B) blocks.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from thinwire.core import RankContext, Spec, State, Traits
from thinwire.kernels import levels, reference
from thinwire.what.scalar._direct import Direct


def length(block: int, spec: Spec) -> int:
    """Return the values of a block in this span; one of 0 is the whole span."""
    return block or max(spec.numel, 1)


def wrong_block(codec_name: str, block: int) -> list[str]:
    """Return what cannot be about a block, for the user."""
    return (
        [f"{codec_name}(block={block}): a block has at least 1 value, or 0 for the whole span"]
        if block < 0
        else []
    )


def wrong_grid(codec_name: str, bits: int, grid: str) -> list[str]:
    """Return what cannot be about magnitudes of bits - 1 bits and a sign, for the user."""
    reasons = [] if 2 <= bits <= 8 else [f"{codec_name}(bits={bits}): choose 2 to 8"]
    if bits == 2 and grid == "tread":
        reasons.append(
            f"{codec_name}(bits=2, grid='tread'): its only levels would be -1, 0, 1; use "
            "ternary(), in "
            "1.6 bits, or grid='rise'"
        )
    return (
        reasons
        if grid in ("tread", "rise")
        else [*reasons, f"{codec_name}(grid={grid!r}): choose 'tread' or 'rise'"]
    )


def wrong_rounding(codec_name: str, rounding: str) -> list[str]:
    """Return what cannot be about rounding, for the user."""
    valid = rounding in ("nearest", "stochastic")
    return (
        [] if valid else [f"{codec_name}(rounding={rounding!r}): choose 'nearest' or 'stochastic'"]
    )


class Levels(Direct):
    """b-bit codes of a fixed table of levels, and a scale a block: its absmax over the table's
    largest level."""

    block: int
    rounding: reference.Rounding

    @cached_property
    def traits(self) -> Traits:
        random = self.rounding == "stochastic"
        grain = math.lcm(self.block or 1, 8 // math.gcd(self._bits, 8))
        return Traits(grain=grain, randomised=random, unbiased=random)

    @property
    @abstractmethod
    def _bits(self) -> int:
        """Bits of a code."""

    @abstractmethod
    def _values(self) -> Tensor:
        """The level of each code, NaN for one that stands for none: (2**bits,) float64."""

    @property
    def _float8(self) -> torch.dtype | None:
        """torch's type that rounds to the nearest level just so, where there is one."""
        return None

    def nbytes(self, spec: Spec) -> int:
        return self._scales(spec) * spec.work.itemsize + reference.packed_nbytes(
            spec.numel, self._bits
        )

    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        if not spec.numel:
            return torch.empty(0, dtype=torch.uint8, device=x.device)
        key = ctx.rng_key(spec) if self.rounding == "stochastic" else None
        return levels.encode(x, length(self.block, spec), table(self), key)

    def _decoded(
        self, out: Tensor | None, payload: Tensor, spec: Spec, add: bool = False
    ) -> Tensor:
        if not spec.numel:
            return torch.empty(0, dtype=spec.work, device=payload.device)
        settings = spec.numel, length(self.block, spec), table(self), spec.work
        return levels.decode(payload, *settings, out, add)

    def _scales(self, spec: Spec) -> int:
        """Return the scales sent: one a block."""
        return -(-spec.numel // length(self.block, spec))

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        own, _ = table(self).places
        blocks, top = reference.to_blocks(x.double(), length(self.block, spec)), own.abs().max()
        absmax = blocks.abs().amax(1, keepdim=True)
        scaled = torch.where(absmax > 0, blocks / absmax * top, 0).clamp(-top, top)
        # a value on a level may be taken for one beside it
        gaps = [level_gap(scaled + near, own) for near in (-1e-6 * top, 1e-6 * top)]
        reach = 0.5 if self.rounding == "nearest" else 1.0  # of a gap
        error = reach * torch.maximum(*gaps) * absmax / top
        return (error + rounding_slack(absmax, float(top), spec)).reshape(-1)[: spec.numel]


@lru_cache(maxsize=64)
def table(codec: Levels) -> levels.Table:
    """Return the levels of a codec, as the kernels take them."""
    with torch.inference_mode(False):
        return levels.Table(codec._values(), codec._bits, codec._float8)


def level_gap(x: Tensor, levels: Tensor) -> Tensor:
    """Return the distance between the two ascending levels that each value lies between."""
    low = (torch.bucketize(x, levels, right=True) - 1).clamp(0, len(levels) - 2)
    return levels[low + 1] - levels[low]


def rounding_slack(size: Tensor, top: float, spec: Spec) -> Tensor:
    """Bound what float arithmetic adds to an error, by a block's largest magnitude `size`.

    The block's scale may be subnormal; `top` is the largest level in scales.
    """
    info = torch.finfo(spec.work)
    return (8 * info.eps * size + 2 * top * info.smallest_normal * info.eps) * (size > 0)
