"""Each kernel in plain torch: the definition that every faster one must equal.

Legend: n values, b bits a value, B values a block, m = ceil(n / B) blocks.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Rounding = Literal["nearest", "stochastic"]
Grid = Literal["tread", "rise"]


def as_bytes(x: Tensor) -> Tensor:
    """The bytes of a flat tensor, not copied where it is contiguous: (n * itemsize,) uint8."""
    x = x.contiguous()
    return x.as_strided(x.shape, (1,)).view(torch.uint8)  # torch calls a single strided value contiguous, and would not view it as bytes


def from_bytes(payload: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes as numbers; copied only where the view would be misaligned."""
    itemsize = dtype.itemsize
    if payload.storage_offset() % itemsize:
        payload = payload.clone()
    return payload.view(dtype)


def packed_nbytes(n: int, bits: int) -> int:
    """Bytes of n values of `bits` bits each."""
    return (n * bits + 7) // 8


def pack(values: Tensor, bits: int) -> Tensor:
    """n unsigned values below 2**bits, `bits` bits each, first value in the lowest bits: (ceil(n·bits/8),) uint8.

    Example:
        >>> pack(torch.tensor([1, 2, 3, 0, 1]), 2).tolist()
        [57, 1]
    """
    n = values.numel()
    if bits == 8:
        return values.to(torch.uint8)
    if bits in (1, 2, 4):
        lanes = 8 // bits
        padded = torch.zeros(-(-n // lanes) * lanes, dtype=torch.uint8, device=values.device)
        padded[:n] = values
        rows = padded.view(-1, lanes)
        out = rows[:, 0].clone()
        for lane in range(1, lanes):
            out |= rows[:, lane] << (lane * bits)
        return out
    shifts = torch.arange(bits, device=values.device)
    stream = ((values.to(torch.int64)[:, None] >> shifts) & 1).to(torch.uint8).view(-1)  # (n * bits,) one bit a byte
    return pack(stream, 1)


def unpack(payload: Tensor, n: int, bits: int) -> Tensor:
    """The inverse of `pack`: (n,) uint8 up to 8 bits, else int64."""
    if bits == 8:
        return payload[:n].clone()
    if bits in (1, 2, 4):
        lanes = 8 // bits
        rows = torch.empty(payload.numel(), lanes, dtype=torch.uint8, device=payload.device)
        for lane in range(lanes):
            rows[:, lane] = (payload >> (lane * bits)) & (2**bits - 1)
        return rows.view(-1)[:n]
    stream = unpack(payload, n * bits, 1).view(n, bits).to(torch.int64)
    return (stream << torch.arange(bits, device=payload.device)).sum(1)


def to_blocks(x: Tensor, block: int) -> Tensor:
    """(n,) -> (m, B), the last block filled up with zeros; a view where n is a multiple of B."""
    n = x.numel()
    if n % block == 0:
        return x.view(-1, block)
    padded = x.new_zeros(-(-n // block) * block)
    padded[:n] = x
    return padded.view(-1, block)


def levels(bits: int, grid: Grid) -> tuple[int, float]:
    """The number of levels, and the largest in units of the step: 2^b - 1 with a zero ("tread"), 2^b without ("rise").

    Example:
        >>> levels(4, "tread"), levels(2, "rise")
        ((15, 7.0), (4, 1.5))
    """
    count = 2**bits - 1 if grid == "tread" else 2**bits
    return count, (count - 1) / 2


def block_steps(blocks: Tensor, bits: int, grid: Grid) -> Tensor:
    """The step of each block: absmax over the largest level, NaN where the block is not finite. (m, B) -> (m,)."""
    absmax = blocks.abs().amax(1)  # amax hands NaN on
    steps = absmax / levels(bits, grid)[1]
    return torch.where(absmax.isfinite(), steps, steps.new_tensor(float("nan")))


def quantise(x: Tensor, steps: Tensor, bits: int, grid: Grid, noise: Tensor | None) -> Tensor:
    """Codes 0 … levels-1 of x (m, B) on the grid of `steps` (m, 1); rounds to nearest, or up with the fraction as probability.

    noise: uniform in [0, 1) of x's shape for stochastic rounding. Codes of a block with a zero or non-finite step
    are those of zero (tread) or of the level just above it (rise).
    """
    count, top = levels(bits, grid)
    usable = (steps > 0) & steps.isfinite()
    scaled = torch.where(usable, x / torch.where(usable, steps, torch.ones_like(steps)), torch.zeros_like(x)).add_(top)
    codes = torch.round(scaled) if noise is None else torch.floor(scaled.add_(noise))
    return codes.clamp_(0, count - 1).to(torch.uint8)


def dequantise(codes: Tensor, steps: Tensor, bits: int, grid: Grid) -> Tensor:
    """The values of codes (m, B) on the grid of `steps` (m, 1)."""
    return (codes.to(steps.dtype) - levels(bits, grid)[1]).mul_(steps)
