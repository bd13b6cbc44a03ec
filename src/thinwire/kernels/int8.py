"""Keep float32 values in 8 bits, and read them again: residuals between two flights.

Per block of 256 values, counted from the first, one step Δ in float32 and codes c from -127 to 127;
a value is c·Δ:
    1. Δ = max|v| / 127, rounded *up* to 16 significant bits, and at least the smallest normal
       number
    2. c = v/Δ rounded to nearest: |c·Δ - v| <= Δ/2
Δ has 16 significant bits and c has 7, so c·Δ is exact in float32, 127·Δ gives Δ again, and what was
packed once packs to the same bytes.

n values are m = ceil(n / 256) steps (float32), then n codes (int8): (n + 4·m,) uint8.
"""

from __future__ import annotations

import torch
from torch import Tensor

from thinwire.kernels import memory, native, reference

BLOCK = 256
_TOP = 127
_SPARE = 0xFF  # the last 8 of a float32's 24 significant bits
_SMALLEST = torch.finfo(torch.float32).smallest_normal
_LARGEST = float.fromhex(
    "0x1.0204p+121"
)  # the largest number of 16 significant bits that 127 times is still a float32


def pack(flat: Tensor) -> Tensor:
    """Return values (n,) in 8 bits; what is not finite has no form."""
    flat = flat.contiguous()
    kernels = native.library(flat)
    if kernels is not None:
        out = memory.empty(4 * -(-flat.numel() // BLOCK) + flat.numel(), torch.uint8)
        threads = torch.get_num_threads()
        kernels.lib.int8_pack(flat.data_ptr(), flat.numel(), out.data_ptr(), threads)
        return out
    blocks = reference.to_blocks(flat, BLOCK)  # (m, 256)
    bits = (blocks.abs().amax(1) / _TOP).view(torch.int32)
    steps = ((bits + _SPARE) & ~_SPARE).view(torch.float32).clamp(_SMALLEST, _LARGEST)  # (m,)
    codes = (blocks / steps[:, None]).round_().clamp_(-_TOP, _TOP).to(torch.int8)
    return torch.cat(
        [reference.as_bytes(steps), reference.as_bytes(codes.view(-1)[: flat.numel()])]
    )


def unpack(stored: Tensor, n: int) -> Tensor:
    """Return the n values that `pack` stored: (n,) float32."""
    kernels = native.anywhere(stored) if 0 < n < 2**31 else None
    if kernels is not None:
        out = memory.empty(n, torch.float32)
        stored, threads = stored.contiguous(), torch.get_num_threads()
        kernels.lib.int8_unpack(stored.data_ptr(), n, out.data_ptr(), threads)
        return out
    cut = stored.numel() - n
    steps = reference.from_bytes(stored[:cut], torch.float32)
    codes = reference.to_blocks(reference.from_bytes(stored[cut:], torch.int8), BLOCK)
    return codes.to(torch.float32).mul_(steps[:, None]).view(-1)[:n]
