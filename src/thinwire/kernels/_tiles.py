# mypy: ignore-errors
# ruff: noqa: N803, N806
# Triton reads these functions as a language of its own: see `_programs.py`.
"""What the Triton programs share: a tile of values, its residual, its random bits, packed codes.

A program takes a tile of ROWS blocks of BLOCK values, SIZE = ROWS * BLOCK in all, from value
`first` on, `count` of which exist. Offsets within a tile are 32 bits wide, those of tiles 64.
"""

import triton
import triton.language as tl

SIZE_BITS = tl.constexpr(0x7FFFFFFF)  # all of a number but its sign
INFINITE = tl.constexpr(0x7F800000)
QUIET_NAN = tl.constexpr(0x7FC00000)


@triton.jit
def tile(n, SIZE: tl.constexpr):
    """The tile's first value, and how many of its values exist."""
    first = tl.program_id(0).to(tl.int64) * SIZE
    return first, tl.minimum(n - first, SIZE).to(tl.int32)


@triton.jit
def rows_of(count, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The tile's rows, and which of them exist."""
    row = tl.arange(0, ROWS)
    return row, row * BLOCK < count


@triton.jit
def summed(x, residual, decay, first, count, SIZE: tl.constexpr, FEEDBACK: tl.constexpr):
    """x + decay * residual, each operation rounded; x alone without FEEDBACK."""
    at = tl.arange(0, SIZE)
    y = tl.load(x + first + at, mask=at < count, other=0.0)
    if FEEDBACK:
        y = y + wide(tl.load(residual + first + at, mask=at < count, other=0)) * decay
    return y


@triton.jit
def wide(stored):
    """The residual as float32: it is stored as that, or as bfloat16's bits."""
    if stored.dtype == tl.int16:
        stored = (stored.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return stored


@triton.jit
def store_residual(new_residual, x, mask):
    """Store the new residual (SIZE,) as float32, or as bfloat16's bits, half to even.

    A cast would round as the compiler likes.
    """
    if new_residual.dtype.element_ty == tl.int16:
        bits = x.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        tl.store(
            new_residual,
            tl.where((bits & SIZE_BITS) > INFINITE, 0x7FC0, rounded).to(tl.int16),
            mask=mask,
        )
    else:
        tl.store(new_residual, x, mask=mask)


@triton.jit
def largest_magnitudes(x):
    """The largest magnitude of each row as an integer; above INFINITE where there is a NaN."""
    return tl.max(x.to(tl.int32, bitcast=True) & SIZE_BITS, axis=1)


@triton.jit
def draw(n, key0, key1):
    """reference.random_bits: the n-th word of a key."""
    x = n + key0.to(tl.uint32, bitcast=True)
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ key1.to(tl.uint32, bitcast=True)
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def pack(codes, to, SIZE: tl.constexpr, BITS: tl.constexpr):
    """Store codes (SIZE,) uint32, BITS bits each, the first in the lowest bits. The whole tile is
    stored: there is room for it."""
    to += tl.program_id(0).to(tl.int64) * (SIZE // 8 * BITS)
    if 8 % BITS == 0:
        PER: tl.constexpr = 8 // BITS  # codes of a byte
        shifts = (tl.arange(0, PER) * BITS).to(tl.uint32)
        packed = tl.sum(tl.reshape(codes, (SIZE // PER, PER)) << shifts[None, :], axis=1)
        tl.store(to + tl.arange(0, SIZE // PER), packed.to(tl.uint8))
    else:  # 8 codes make BITS bytes, by way of a word of 64 bits
        lane, group = tl.arange(0, 8), tl.arange(0, SIZE // 8)
        words = tl.sum(
            tl.reshape(codes, (SIZE // 8, 8)).to(tl.uint64) << (lane * BITS)[None, :].to(tl.uint64),
            axis=1,
        )
        packed = words[:, None] >> (lane * 8)[None, :].to(tl.uint64)
        tl.store(
            to + group[:, None] * BITS + lane[None, :],
            packed.to(tl.uint8),
            mask=(lane < BITS)[None, :],
        )


@triton.jit
def unpack(codes, count, SIZE: tl.constexpr, BITS: tl.constexpr):
    """The inverse, of `count` codes: (SIZE,) uint32. A code lies in one byte or in two that follow
    one another."""
    codes += tl.program_id(0).to(tl.int64) * (SIZE // 8 * BITS)
    at = tl.arange(0, SIZE)
    bit = at * BITS
    if BITS == 8:
        return tl.load(codes + at, mask=at < count, other=0).to(tl.uint32)
    word = tl.load(codes + (bit >> 3), mask=at < count, other=0).to(tl.uint32)
    if 8 % BITS != 0:
        nbytes = (count * BITS + 7) // 8
        word |= (
            tl.load(codes + (bit >> 3) + 1, mask=(bit >> 3) + 1 < nbytes, other=0).to(tl.uint32)
            << 8
        )
    return (word >> (bit & 7).to(tl.uint32)) & ((1 << BITS) - 1)


@triton.jit
def payload(table, each, head):
    """The heads and codes of a payload whose address is in a table; heads are whole words, so codes
    begin on one."""
    at = tl.load(table + each)
    return at.to(tl.pointer_type(tl.float32)), tl.multiple_of(
        at.to(tl.pointer_type(tl.uint8)) + head, 4
    )
