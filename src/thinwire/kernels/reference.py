"""Define each kernel in plain torch; every faster one must equal it bit for bit.

Legend: n values, b bits a value, B values a block, m = ceil(n / B) blocks.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

Rounding = Literal["nearest", "stochastic"]
Grid = Literal["tread", "rise"]
Key: TypeAlias = tuple[int, int]
"""Two words of 32 bits that fix all draws of a span: of (seed, step, key, span, rank), see
`RankContext.rng_key`."""

_WORD = 0xFFFFFFFF
# Steps below _TINY have no inverse in float32, but that of a step times _LIFT.
_TINY, _LIFT = 2.0**-100, 2.0**64
# Parts of a step in stochastic rounding: so little below 2^16 that no rounding leads beyond the
# grid.
_SHARES = 65536 - 2.0**-6
_HUGE = 2.0**64  # magnitudes from here on are summed 2^-64 times as large


def as_bytes(x: Tensor) -> Tensor:
    """View a flat tensor as bytes, not copied where it is contiguous: (n * itemsize,) uint8."""
    x = x.contiguous()
    # torch calls a single strided value contiguous, and would not view it as bytes.
    return x.as_strided(x.shape, (1,)).view(torch.uint8)


def from_bytes(payload: Tensor, dtype: torch.dtype) -> Tensor:
    """View bytes as numbers; they are copied only where the view would be misaligned."""
    itemsize = dtype.itemsize
    if payload.storage_offset() % itemsize:
        payload = payload.clone()
    return payload.view(dtype)


def packed_nbytes(n: int, bits: int) -> int:
    """Return the bytes of n values of `bits` bits each."""
    return (n * bits + 7) // 8


def pack(values: Tensor, bits: int) -> Tensor:
    """Pack n unsigned values below 2**bits in `bits` bits each: (ceil(n·bits/8),) uint8.

    The first value lies in the lowest bits.

    Example:
        >>> pack(torch.tensor([1, 2, 3, 0, 1]), 2).tolist()
        [57, 1]
    """
    n = values.numel()
    if bits == 8:
        return values.to(torch.uint8)
    # a. 8 / bits values share a byte: one shift and one OR for each of them, over all bytes.
    if bits in (1, 2, 4):
        lanes = 8 // bits
        padded = torch.zeros(-(-n // lanes) * lanes, dtype=torch.uint8, device=values.device)
        padded[:n] = values
        rows = padded.view(-1, lanes)
        out = rows[:, 0].clone()
        for lane in range(1, lanes):
            out |= rows[:, lane] << (lane * bits)
        return out
    # b. Other widths cross bytes: spread all bits, one a byte, and pack those.
    shifts = torch.arange(bits, device=values.device)
    # (n * bits,)
    stream = ((values.to(torch.int64)[:, None] >> shifts) & 1).to(torch.uint8).view(-1)
    return pack(stream, 1)


def unpack(payload: Tensor, n: int, bits: int) -> Tensor:
    """Unpack what `pack` packed: (n,) uint8 for 1, 2, 4 and 8 bits, else int64."""
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
    """Lay (n,) out as (m, B), filled up with zeros; a view where n is a multiple of B."""
    n = x.numel()
    if n % block == 0:
        return x.view(-1, block)
    padded = x.new_zeros(-(-n // block) * block)
    padded[:n] = x
    return padded.view(-1, block)


def levels(bits: int, grid: Grid) -> tuple[int, float]:
    """Return the number of levels, and the largest of them in units of the step.

    There are 2^b - 1 with a zero ("tread"), or 2^b without ("rise").

    Example:
        >>> levels(4, "tread"), levels(2, "rise")
        ((15, 7.0), (4, 1.5))
    """
    count = 2**bits - 1 if grid == "tread" else 2**bits
    return count, (count - 1) / 2


def block_steps(blocks: Tensor, bits: int, grid: Grid) -> Tensor:
    """Return the step of each block, absmax over the largest level: (m, B) -> (m,).

    It is NaN where the block is not finite.
    """
    absmax = blocks.abs().amax(1)  # amax hands NaN on
    # Divided by a number instead of a tensor, CUDA would multiply with its inverse.
    steps = absmax / torch.full_like(absmax, levels(bits, grid)[1])
    return torch.where(absmax.isfinite(), steps, steps.new_tensor(float("nan")))


def quantise(x: Tensor, steps: Tensor, bits: int, grid: Grid, random: Tensor | None) -> Tensor:
    """Return codes 0 … levels-1 of x (m, B) on the grid of `steps` (m, 1).

    Values are rounded to nearest, or up with the fraction as probability.

    random: `random_bits` of x's shape for stochastic rounding, in units of 2^-16 steps. Codes of a
        block with a zero or non-finite step are those of zero (tread) or of the even level beside
        it (rise).
    """
    count, top = levels(bits, grid)
    usable = (steps > 0) & steps.isfinite()
    # 1. x / step as x · (1 / step): lifted by 2^64 where a step is too small to have an inverse.
    lift = torch.where(steps < _TINY, _LIFT, 1.0).to(steps)
    inverse = torch.where(usable, 1 / (torch.where(usable, steps, 1) * lift), 0)
    lifted = torch.where(usable, x * lift, 0)
    # 2. Shift to 0 … count - 1 and round: to the nearest level, or in units of 2^-16 levels by
    #    adding random bits below one level and dropping the fraction.
    if random is None:
        codes = lifted.mul_(inverse).add_(top).clamp_(0, count - 1).round_()
    else:
        scaled = (
            lifted.mul_(inverse * _SHARES).add_(top * 65536 + 0.5).clamp_(0, (count - 1) * 65536)
        )
        codes = torch.where(usable, scaled.to(torch.int64) + random >> 16, round(top))
    return codes.to(torch.uint8)


def dequantise(codes: Tensor, steps: Tensor, bits: int, grid: Grid) -> Tensor:
    """Return the values of codes (m, B) on the grid of `steps` (m, 1)."""
    return (codes.to(steps.dtype) - levels(bits, grid)[1]).mul_(steps)


def random_bits(n: int, key: Key) -> Tensor:
    """Draw n numbers of 16 bits, the same on every machine.

    Value i takes a half of word i // 2 of a counter's hash, the lower where i is even.

    word(j) is a hash of 32 bits with low bias of j + key₀ (C. Wellons, "prospector", 2018), with
    key₁ stirred in after its first product.

    Example:
        >>> torch.equal(random_bits(4, (1, 2)), random_bits(4, (1, 2)))
        True
        >>> int(random_bits(1000, (1, 2)).max()) < 65536
        True
    """
    x = (torch.arange((n + 1) // 2) + key[0]) & _WORD
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = x ^ key[1]
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _WORD
    words = x ^ (x >> 16)
    return torch.stack([words & 0xFFFF, words >> 16], 1).view(-1)[:n]


def noise(n: int, key: Key) -> Tensor:
    """Draw `random_bits` as numbers in (0, 1): (n,) float32."""
    return random_bits(n, key).to(torch.float32).add_(0.5).mul_(2.0**-16)


def summed(x: Tensor, residual: Tensor, decay: float) -> Tensor:
    """Return x + decay · residual, each operation rounded."""
    return x + residual if decay == 1 else x + residual * decay


def block_means(magnitudes: Tensor, n: int) -> Tensor:
    """Return the mean of each block (m, B), of which the first n values count: (m,).

    Sums are by halves: i and i + W/2 are added, with W the next power of two, so the order is
    fixed. A mean is NaN where a value of the block is not finite.
    """
    m, block = magnitudes.shape
    absmax = magnitudes.amax(1)  # amax hands NaN on
    huge = absmax >= _HUGE
    tail = n - (m - 1) * block
    # The last block may be shorter, so its sum and its divisor are its own.
    means = [_mean(magnitudes[:-1], huge[:-1]), _mean(magnitudes[-1:, :tail], huge[-1:])]
    return torch.where(absmax.isfinite(), torch.cat(means), torch.full_like(absmax, float("nan")))


def _mean(magnitudes: Tensor, huge: Tensor) -> Tensor:
    m, n = magnitudes.shape
    width = 1 << (n - 1).bit_length()
    # Huge magnitudes are summed 2^-64 times as large, as their sum would overflow.
    sums = magnitudes.new_zeros(m, width)
    sums[:, :n] = magnitudes * torch.where(huge, 1 / _HUGE, 1.0).to(magnitudes)[:, None]
    while width > 1:
        width //= 2
        sums = sums[:, :width] + sums[:, width:]
    return (
        sums[:, 0] / torch.full_like(sums[:, 0], n) * torch.where(huge, _HUGE, 1.0).to(magnitudes)
    )


def grid_encode(
    x: Tensor, block: int, bits: int, grid: Grid, key: Key | None, steps: Tensor | None = None
) -> Tensor:
    """Encode x (n,) as m steps, then n codes of `bits` bits: uint8.

    A `key` rounds stochastically; `steps` (m,) are given, or by each block's largest magnitude.
    """
    n = x.numel()
    rows = to_blocks(x, block)
    steps = block_steps(rows, bits, grid) if steps is None else steps
    random = None if key is None else to_blocks(random_bits(n, key).to(x.device), block)
    codes = quantise(rows, steps[:, None], bits, grid, random)
    return torch.cat([as_bytes(steps), pack(codes.view(-1)[:n], bits)])


def grid_decode(
    payload: Tensor, n: int, block: int, bits: int, grid: Grid, dtype: torch.dtype
) -> Tensor:
    """Decode what `grid_encode` encoded: (n,) of `dtype`, that of the steps."""
    head = -(-n // block) * dtype.itemsize
    steps = from_bytes(payload[:head], dtype)
    return dequantise(
        to_blocks(unpack(payload[head:], n, bits), block), steps[:, None], bits, grid
    ).view(-1)[:n]


def sign_encode(x: Tensor, block: int) -> Tensor:
    """Encode x (n,) as each block's mean magnitude, then a bit a value, 1 below zero: uint8."""
    means = block_means(to_blocks(x.abs(), block), x.numel())
    return torch.cat([as_bytes(means), pack((x < 0).to(torch.uint8), 1)])


def sign_decode(payload: Tensor, n: int, block: int, dtype: torch.dtype) -> Tensor:
    """Decode what `sign_encode` encoded: (n,) of `dtype`, that of the means."""
    head = -(-n // block) * dtype.itemsize
    means = from_bytes(payload[:head], dtype)[:, None]
    below = to_blocks(unpack(payload[head:], n, 1), block)
    return torch.where(below.bool(), -means, means).view(-1)[:n]


def largest(rows: Tensor, k: int) -> Tensor:
    """Return the indices of the k largest magnitudes of each row, ascending: (m, k) int64.

    A NaN is the largest; of equals the first are taken.
    """
    order = rows.abs().sort(dim=1, descending=True, stable=True).indices
    return order[:, :k].sort(dim=1).values


def above(x: Tensor, bar: Tensor) -> Tensor:
    """Return the indices of magnitudes of `bar` or more, and of every NaN: (c,) int64.

    A zero is never taken.
    """
    sizes = x.abs()
    return (~(sizes < bar) & (sizes != 0)).nonzero().view(-1)


def outer(p: Tensor, q: Tensor, out: Tensor) -> None:
    """Write out (rows, n) = p (rows, r) · q (n, r)ᵀ, column by column of both.

    Each sum is rounded, so the bits are the same wherever it is computed.
    """
    torch.mul(p[:, :1], q[:, 0], out=out)
    for k in range(1, p.shape[1]):
        out.add_(p[:, k : k + 1] * q[:, k])
