"""Residuals kept in 8 bits: what `feedback(store="int8")` leaves on a rank between two flights.

Per block of 256 values, counted from the span's begin, one step Δ in float32 and codes c from -127
to 127; a value is c·Δ:
    1. Δ = max|v| / 127, rounded *up* to 16 significant bits, and at least the smallest normal
       number
    2. c = v/Δ rounded to nearest: |c·Δ - v| <= Δ/2
Δ has 16 significant bits and c has 7, so c·Δ is exact in float32, 127·Δ gives Δ again, and what was
packed once packs to the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from thinwire.kernels import reference

BLOCK = 256
_TOP = 127
_SPARE = 0xFF  # the last 8 of a float32's 24 significant bits
_SMALLEST = torch.finfo(torch.float32).smallest_normal
_LARGEST = float.fromhex(
    "0x1.0204p+121"
)  # the largest number of 16 significant bits that 127 times is still a float32


@dataclass(frozen=True, slots=True)
class Int8:
    """`numel` float32 values as m = ceil(numel/256) steps (float32), then numel codes (int8):
    (numel + 4·m,) uint8.

    Example:
        >>> form = Int8(3)
        >>> kept = form.pack(torch.tensor([1.0, 0.26, -0.001]))
        >>> kept.numel(), [round(v, 3) for v in form.unpack(kept).tolist()]
        (7, [1.0, 0.26, 0.0])
    """

    numel: int

    def pack(self, flat: Tensor) -> Tensor:
        blocks = reference.to_blocks(flat.contiguous(), BLOCK)  # (m, 256)
        bits = (blocks.abs().amax(1) / _TOP).view(torch.int32)
        steps = ((bits + _SPARE) & ~_SPARE).view(torch.float32).clamp(_SMALLEST, _LARGEST)  # (m,)
        codes = (blocks / steps[:, None]).round_().clamp_(-_TOP, _TOP).to(torch.int8)
        return torch.cat(
            [reference.as_bytes(steps), reference.as_bytes(codes.view(-1)[: self.numel])]
        )

    def unpack(self, value: Tensor) -> Tensor:
        cut = value.numel() - self.numel
        steps = reference.from_bytes(value[:cut], torch.float32)
        codes = reference.to_blocks(reference.from_bytes(value[cut:], torch.int8), BLOCK)
        return codes.to(torch.float32).mul_(steps[:, None]).view(-1)[: self.numel]
