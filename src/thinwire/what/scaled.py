"""A scale a block in one byte, before a codec that then needs none of its own: `scaled(32) >> nf4(0)`, 4.25 bits a value.

Steps, with S the span's largest magnitude and blocks of B values:
    1. c of each block, one byte: its scale is s = S · 2^(-(254 - c) / 16), the nearest to the block's largest magnitude (4.4 % apart).
    2. The core: v / s, cut at ±1, for the codec to the right of `>>`.
    3. Back: s times what that says.
With "near" the cut takes at most 2.2 % off a block's largest values; with "cover" s is the next scale above, and nothing is cut; for a
grid that `fit` names the scale is that of least squared error, which may cut more. So small a scale makes small blocks cheap: 32 values
and a byte take what 128 and a float32 do, and the fewer values share a scale, the closer it fits.

Source: scales of 8 bits under one of 32 as in QLoRA's double quantisation (Dettmers et al. 2023, arXiv:2305.14314) and NVFP4; one byte
for 32 values as in OCP Microscaling (Rouhani et al. 2023, arXiv:2310.10537). Differs from them: logarithmic scales, sixteen an octave.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from thinwire.core import Seat, Spec, State
from thinwire.errors import StrategyError
from thinwire.kernels import reference
from thinwire.what._levels import Levels, length, nearest_index, table, wrong_block
from thinwire.what.chain import Transform
from thinwire.what.fp4 import fp4
from thinwire.what.fp8 import fp8
from thinwire.what.nf4 import nf4

_TOP, _LOST = 254, 255  # the code of S, and that of a block that is not finite
_TABLES: dict[str, Levels] = {"nf4": nf4(0), "e2m1": fp4("e2m1", 0), "e3m0": fp4("e3m0", 0), "e4m3": fp8("e4m3", 0), "e5m2": fp8("e5m2", 0)}
_BELOW = (0, 1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48)  # codes that are tried below the first that cuts nothing


@dataclass(frozen=True)
class scaled(Transform):
    """Blocks over their scales: 1 byte a block and 4 a span (8 in float64 buckets), and what says the core, all of it between -1 and 1.

    Args:
        block: values that share a scale, best 16 to 128; 0 means the whole span.
        fit: "near" the largest magnitude; "cover" it, so that nothing is cut and what follows stays unbiased; or the bits, 2 to 8, of the
            uniform grid that follows, or the format of `nf4`, `fp4` or `fp8` that does: the scale of least squared error.

    Raises:
        StrategyError: an argument outside the above.

    What follows needs no blocks of its own: `nf4(0)`, `fp4("e2m1", 0)`, `uniform(4, step=1 / 7)`. Scales reach down to S / 57,000: a block
    of smaller values is said on the grid of that scale. A block that holds a NaN or an infinity decodes to NaN throughout.

    Example:
        >>> from thinwire.what import nf4
        >>> (scaled(32) >> nf4(0)).nbytes(Spec((), 0, 1024, torch.float32))  # 512 for the codes, 32 for the scales, 4 and 4
        552
    """

    block: int = 32
    fit: int | Literal["near", "cover", "nf4", "e2m1", "e3m0", "e4m3", "e5m2"] = "near"

    def __post_init__(self) -> None:
        reasons = wrong_block("scaled", self.block)
        if self.fit not in ("near", "cover", *_TABLES, *range(2, 9)):
            known = ", ".join(map(repr, _TABLES))
            reasons.append(
                f"scaled(fit={self.fit!r}): choose 'near' or 'cover', or what follows: bits of a uniform grid, 2 to 8, or one of {known}"
            )
        if reasons:
            raise StrategyError(reasons)

    @property
    def grain(self) -> int:
        return self.block or 1

    @property
    def cuts(self) -> float:
        """The share of a value that may be cut off, at most."""
        lowest = 2 ** (-1 / 16)
        return {"near": (1 - lowest) / (1 + lowest) + 1e-6, "cover": 0.0}.get(str(self.fit), 1 - 2 ** (-_BELOW[-1] / 16))

    def core_numel(self, spec: Spec) -> int:
        return spec.numel

    def side_nbytes(self, spec: Spec, core_numel: int) -> int:
        return spec.work.itemsize + -(-spec.numel // length(self.block, spec)) if spec.numel else 0

    def split(self, x: Tensor, spec: Spec, state: State, seat: Seat) -> tuple[Tensor, Tensor]:
        if not spec.numel:
            return x.to(spec.work), torch.empty(0, dtype=torch.uint8, device=x.device)
        blocks = reference.to_blocks(x.to(spec.work).contiguous(), length(self.block, spec))
        top, codes = self._codes(blocks)
        core = _over(blocks, _scales(top, codes)).view(-1)[: spec.numel]
        return core, torch.cat([reference.as_bytes(top), codes])

    def join(self, core: Tensor, side: Tensor, spec: Spec, state: State, seat: Seat, sender: int) -> Tensor:
        if not spec.numel:
            return core
        return reference.to_blocks(core, length(self.block, spec)).mul(self.scales(side, spec)[:, None]).view(-1)[: spec.numel]

    def scales(self, side: Tensor, spec: Spec) -> Tensor:
        """The scale of each block, NaN for one that is not finite: (m,)."""
        size = spec.work.itemsize
        return _scales(reference.from_bytes(side[:size], spec.work), side[size:])

    def _codes(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """S (1,) and the code of each block: (m, B) -> (m,) uint8; 0 where all is zero."""
        absmax = blocks.abs().amax(1)  # amax hands NaN on
        sound = absmax.isfinite()
        size = torch.where(sound, absmax, 0)
        top = size.max().view(1)
        steps = _steps(blocks.device, blocks.dtype)
        share = size / torch.where(top > 0, top, 1)
        above = torch.bucketize(share, steps).clamp_(1, _TOP)  # the first scale that cuts nothing
        if self.fit == "near":
            above -= (steps[above] - share > share - steps[above - 1]).long() * (above > 1)
        elif self.fit != "cover":
            above = self._best(blocks, top, above)
        codes = torch.where(size > 0, above, 0)
        return top, torch.where(sound, codes, _LOST).to(torch.uint8)

    def _best(self, blocks: Tensor, top: Tensor, above: Tensor) -> Tensor:
        """Of the codes from `above` down, that whose scale has the least squared error on the grid of `fit`: (m,) int64."""
        unit = _over(blocks, _scales(top, above), cut=False)
        least, best = torch.full_like(unit[:, 0], float("inf")), above
        for below in _BELOW:
            codes = (above - below).clamp(min=1)
            shrunk = (_scales(top, codes) / _scales(top, above)).nan_to_num(1.0)[:, None]
            error = self._rounded(unit / shrunk).mul_(shrunk).sub_(unit).square_().sum(1)
            best = torch.where(error < least, codes, best)
            least = torch.minimum(error, least)
        return best

    def _rounded(self, core: Tensor) -> Tensor:
        """The levels of `fit` that are nearest to a core that may be too large for them."""
        if isinstance(self.fit, int):
            largest = 2 ** (self.fit - 1) - 1
            return core.mul_(largest).round_().clamp_(-largest, largest).div_(largest)
        levels = table(_TABLES[self.fit])[0].to(core)
        levels = levels / levels.abs().max()
        return levels[nearest_index(core, levels)]


def _over(blocks: Tensor, scales: Tensor, cut: bool = True) -> Tensor:
    """Each block over its scale, zeros where that is no positive number."""
    usable = (scales > 0)[:, None]
    out = torch.where(usable, blocks / torch.where(usable, scales[:, None], 1), 0)
    return out.clamp_(-1, 1) if cut else out


def _scales(top: Tensor, codes: Tensor) -> Tensor:
    """The scale of each code; NaN where a block is lost."""
    return _steps(top.device, top.dtype)[codes.long()] * top


@lru_cache(maxsize=16)
def _steps(device: torch.device, dtype: torch.dtype) -> Tensor:
    """The scale of each code over S, rising; the first is 0, the last NaN: (256,). Of 20 bits, so that no machine rounds them otherwise."""
    with torch.inference_mode(False):
        octave = [round(2 ** (-i / 16) * 2**20) / 2**20 for i in range(16)]
        shares = [octave[(_TOP - code) % 16] * 2.0 ** -((_TOP - code) // 16) for code in range(1, _TOP + 1)]
        return torch.tensor([0.0, *shares, float("nan")], dtype=torch.float64).to(device, dtype)
