# mypy: ignore-errors
# ruff: noqa: N803, N806, PLR0913, PLR0917
# Triton reads these functions as a language of its own: with types of its own, constants in
# capitals, and no way to hand on a record.
"""The Triton programs of `kernels/gpu.py`: codecs in blocks of a power of two, for CUDA and ROCm,
and for Triton's interpreter on a CPU.

Each equals `kernels/reference.py` bit for bit. That needs, as in kernels/cpu:
  - no contraction of a product and a sum: every launch says enable_fp_fusion=False;
  - `tl.div_rn`: the plain `/` of float32 is an approximation on a GPU;
  - largest magnitudes as integers, and means by halves: the order of a `tl.sum` is fixed only where
    it is of two values, or of integers;
  - subnormal numbers kept. Triton does that by default: its PTX has no `.ftz` outside of exp2 and
    the like, and on AMD `allow_flush_denorm` is off. tests/kernels/test_gpu.py looks at the
    compiled code for all of these.

`_tiles.py` has what they share: how a tile is laid out, packed and drawn for.
"""

import triton
import triton.language as tl

from thinwire.kernels._tiles import (
    INFINITE,
    QUIET_NAN,
    SIZE_BITS,
    draw,
    largest_magnitudes,
    pack,
    payload,
    rows_of,
    store_residual,
    summed,
    tile,
    unpack,
)

# 1.5 * 2^23: a small number added to it is rounded, half to even, into the lowest bits.
MAGIC = tl.constexpr(12582912.0)
# Steps below have no inverse in float32, but that of a step lifted by the next.
TINY = tl.constexpr(2.0**-100)
LIFT = tl.constexpr(2.0**64)
HUGE = tl.constexpr(2.0**64)  # magnitudes from here on are summed 2^-64 times as large
HUGE_BITS = tl.constexpr(0x5F800000)


# -- grids
# --------------------------------------------------------------------------------------------------


@triton.jit
def _step_bits(most, TOP: tl.constexpr):
    """The bits of steps (ROWS,), of largest magnitudes that are not finite a NaN's."""
    steps = tl.div_rn(most.to(tl.float32, bitcast=True), tl.full(most.shape, TOP, tl.float32))
    return tl.where(most >= INFINITE, QUIET_NAN, steps.to(tl.int32, bitcast=True))


@triton.jit
def _codes(
    x,
    step_bits,
    first,
    key0,
    key1,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    TOP: tl.constexpr,
    ZERO: tl.constexpr,
    STOCHASTIC: tl.constexpr,
):
    """reference.quantise of x (ROWS, BLOCK): uint32."""
    steps = step_bits.to(tl.float32, bitcast=True)
    usable = (steps > 0) & (step_bits < INFINITE)
    lift = tl.where(steps < TINY, LIFT, 1.0)
    inverse = tl.div_rn(tl.full(steps.shape, 1.0, tl.float32), tl.where(usable, steps, 1.0) * lift)
    lifted = x * lift[:, None]
    if STOCHASTIC:
        v = lifted * (inverse * 65535.984375)[:, None] + (TOP * 65536 + 0.5)
        v = tl.where(v > 0, v, 0.0)  # a NaN becomes 0, too
        v = tl.where(v < 2 * TOP * 65536, v, 2 * TOP * 65536)
        index = (
            tl.arange(0, ROWS)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :] + first.to(tl.int32)
        )
        halves = (index & 1).to(
            tl.uint32
        ) * 16  # value i takes a half of draw i / 2, the lower where i is even
        random_bits = (draw(index.to(tl.uint32) >> 1, key0, key1) >> halves) & 0xFFFF
        codes = (v.to(tl.int32).to(tl.uint32) + random_bits) >> 16
    else:
        v = lifted * inverse[:, None] + TOP
        v = tl.where(v > 0, v, 0.0)
        v = tl.where(v < 2 * TOP, v, 2 * TOP)
        codes = (v + MAGIC).to(tl.uint32, bitcast=True) & 0xFF
    return tl.where(usable[:, None], codes, ZERO).to(tl.uint32)


@triton.jit
def _grid_put(
    x, given, first, count, key0, key1, steps, codes, new_residual,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr, TOP: tl.constexpr,
    ZERO: tl.constexpr, STOCHASTIC: tl.constexpr, GIVEN: tl.constexpr, FEEDBACK: tl.constexpr,
):  # fmt: skip
    """Store the steps and codes of x (SIZE,), and x less what they decode to in `new_residual`."""
    SIZE: tl.constexpr = ROWS * BLOCK
    at = tl.arange(0, SIZE)
    row, exists = rows_of(count, ROWS, BLOCK)
    x = tl.reshape(x, (ROWS, BLOCK))
    if GIVEN:
        step_bits = tl.load(given + first // BLOCK + row, mask=exists, other=1.0).to(
            tl.int32, bitcast=True
        )
    else:
        step_bits = _step_bits(largest_magnitudes(x), TOP)
    tl.store(steps + first // BLOCK + row, step_bits.to(tl.float32, bitcast=True), mask=exists)
    own = _codes(x, step_bits, first, key0, key1, ROWS, BLOCK, TOP, ZERO, STOCHASTIC)
    pack(tl.where(at < count, tl.reshape(own, (SIZE,)), 0).to(tl.uint32), codes, SIZE, BITS)
    if FEEDBACK:
        decoded = (own.to(tl.float32) - TOP) * step_bits.to(tl.float32, bitcast=True)[:, None]
        store_residual(new_residual + first + at, tl.reshape(x - decoded, (SIZE,)), at < count)


@triton.jit
def _grid_values(
    steps,
    codes,
    first,
    count,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BITS: tl.constexpr,
    TOP: tl.constexpr,
):
    """Return what a payload's tile decodes to: (SIZE,)."""
    row, exists = rows_of(count, ROWS, BLOCK)
    step = tl.load(steps + first // BLOCK + row, mask=exists, other=0.0)
    own = tl.reshape(unpack(codes, count, ROWS * BLOCK, BITS), (ROWS, BLOCK))
    return tl.reshape((own.to(tl.float32) - TOP) * step[:, None], (ROWS * BLOCK,))


@triton.jit(do_not_specialize=["key0", "key1"])
def grid_encode(
    x, residual, decay, given, n, key0, key1, steps, codes, new_residual,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr, TOP: tl.constexpr,
    ZERO: tl.constexpr, STOCHASTIC: tl.constexpr, GIVEN: tl.constexpr, FEEDBACK: tl.constexpr,
):  # fmt: skip
    """y = x + decay * residual -> steps and codes, and new_residual = y - what they decode to.

    Without FEEDBACK y = x.
    """
    first, count = tile(n, ROWS * BLOCK)
    y = summed(x, residual, decay, first, count, ROWS * BLOCK, FEEDBACK)
    _grid_put(
        y,
        given,
        first,
        count,
        key0,
        key1,
        steps,
        codes,
        new_residual,
        ROWS,
        BLOCK,
        BITS,
        TOP,
        ZERO,
        STOCHASTIC,
        GIVEN,
        FEEDBACK,
    )


@triton.jit
def grid_decode(
    steps,
    codes,
    n,
    out,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BITS: tl.constexpr,
    TOP: tl.constexpr,
    ADD: tl.constexpr,
):
    """Steps and codes -> out (n,), or added to it."""
    first, count = tile(n, ROWS * BLOCK)
    at = tl.arange(0, ROWS * BLOCK)
    value = _grid_values(steps, codes, first, count, ROWS, BLOCK, BITS, TOP)
    if ADD:
        value = tl.load(out + first + at, mask=at < count, other=0.0) + value
    tl.store(out + first + at, value, mask=at < count)


@triton.jit(do_not_specialize=["payloads", "key0", "key1"])
def grid_sum_encode(
    table, payloads, n, head, key0, key1, steps, codes,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr, TOP: tl.constexpr,
    ZERO: tl.constexpr, STOCHASTIC: tl.constexpr,
):  # fmt: skip
    """The steps and codes of the sum of what `payloads` payloads decode to, added in order. head:
    bytes of steps."""
    first, count = tile(n, ROWS * BLOCK)
    heads, own = payload(table, 0, head)
    total = _grid_values(heads, own, first, count, ROWS, BLOCK, BITS, TOP)
    for each in range(1, payloads):
        heads, own = payload(table, each, head)
        total += _grid_values(heads, own, first, count, ROWS, BLOCK, BITS, TOP)
    total = tl.where(tl.arange(0, ROWS * BLOCK) < count, total, 0.0)
    _grid_put(
        total,
        None,
        first,
        count,
        key0,
        key1,
        steps,
        codes,
        None,
        ROWS,
        BLOCK,
        BITS,
        TOP,
        ZERO,
        STOCHASTIC,
        False,
        False,
    )


# -- signs
# --------------------------------------------------------------------------------------------------


@triton.jit
def _mean_bits(x, count, ROWS: tl.constexpr, BLOCK: tl.constexpr, HALVINGS: tl.constexpr):
    """The bits of the mean magnitude of each row of x (ROWS, BLOCK), zeros beyond `count`; a NaN's
    where one is not finite.

    Sums are by halves: i and i + W/2 are added, and then W/2 is W. Zeros beyond a short row's own W
    change nothing.
    """
    most = largest_magnitudes(x)
    huge = most >= HUGE_BITS
    sums = (x.to(tl.int32, bitcast=True) & SIZE_BITS).to(tl.float32, bitcast=True) * tl.where(
        huge, 1 / HUGE, 1.0
    )[:, None]
    for step in tl.static_range(HALVINGS):
        sums = tl.sum(
            tl.reshape(sums, (ROWS, 2, BLOCK >> (step + 1))), axis=1
        )  # of two values: one order only
    own = tl.minimum(tl.maximum(count - tl.arange(0, ROWS) * BLOCK, 1), BLOCK)
    means = tl.div_rn(tl.reshape(sums, (ROWS,)), own.to(tl.float32)) * tl.where(huge, HUGE, 1.0)
    return tl.where(most >= INFINITE, QUIET_NAN, means.to(tl.int32, bitcast=True))


@triton.jit
def _signed(mean_bits, below, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """A mean a row, with the signs (SIZE,) uint32: (SIZE,) float32."""
    own = mean_bits.to(tl.uint32, bitcast=True)[:, None] ^ (tl.reshape(below, (ROWS, BLOCK)) << 31)
    return tl.reshape(own, (ROWS * BLOCK,)).to(tl.float32, bitcast=True)


@triton.jit
def _sign_put(
    x,
    first,
    count,
    means,
    signs,
    new_residual,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    HALVINGS: tl.constexpr,
    FEEDBACK: tl.constexpr,
):
    """Store the means and signs of x (SIZE,), and x less what they decode to in `new_residual`."""
    row, exists = rows_of(count, ROWS, BLOCK)
    mean_bits = _mean_bits(tl.reshape(x, (ROWS, BLOCK)), count, ROWS, BLOCK, HALVINGS)
    tl.store(means + first // BLOCK + row, mean_bits.to(tl.float32, bitcast=True), mask=exists)
    below = (x < 0).to(tl.uint32)
    pack(below, signs, ROWS * BLOCK, 1)
    if FEEDBACK:
        at = tl.arange(0, ROWS * BLOCK)
        store_residual(
            new_residual + first + at, x - _signed(mean_bits, below, ROWS, BLOCK), at < count
        )


@triton.jit
def _sign_values(means, signs, first, count, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Return what a payload's tile decodes to: (SIZE,)."""
    row, exists = rows_of(count, ROWS, BLOCK)
    mean = tl.load(means + first // BLOCK + row, mask=exists, other=0.0)
    return _signed(
        mean.to(tl.int32, bitcast=True), unpack(signs, count, ROWS * BLOCK, 1), ROWS, BLOCK
    )


@triton.jit
def sign_encode(
    x,
    residual,
    decay,
    n,
    means,
    signs,
    new_residual,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    HALVINGS: tl.constexpr,
    FEEDBACK: tl.constexpr,
):
    """y = x + decay * residual -> means and signs, and new_residual = y - what they decode to.

    Without FEEDBACK y = x.
    """
    first, count = tile(n, ROWS * BLOCK)
    y = summed(x, residual, decay, first, count, ROWS * BLOCK, FEEDBACK)
    _sign_put(y, first, count, means, signs, new_residual, ROWS, BLOCK, HALVINGS, FEEDBACK)


@triton.jit
def sign_decode(means, signs, n, out, ROWS: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr):
    """Means and signs -> out (n,), or added to it."""
    first, count = tile(n, ROWS * BLOCK)
    at = tl.arange(0, ROWS * BLOCK)
    value = _sign_values(means, signs, first, count, ROWS, BLOCK)
    if ADD:
        value = tl.load(out + first + at, mask=at < count, other=0.0) + value
    tl.store(out + first + at, value, mask=at < count)


@triton.jit(do_not_specialize=["payloads"])
def sign_sum_encode(
    table,
    payloads,
    n,
    head,
    means,
    signs,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    HALVINGS: tl.constexpr,
):
    """The means and signs of the sum of what `payloads` payloads decode to, added in order, as in
    `grid_sum_encode`."""
    first, count = tile(n, ROWS * BLOCK)
    heads, own = payload(table, 0, head)
    total = _sign_values(heads, own, first, count, ROWS, BLOCK)
    for each in range(1, payloads):
        heads, own = payload(table, each, head)
        total += _sign_values(heads, own, first, count, ROWS, BLOCK)
    total = tl.where(tl.arange(0, ROWS * BLOCK) < count, total, 0.0)
    _sign_put(total, first, count, means, signs, None, ROWS, BLOCK, HALVINGS, False)


# -- the largest of a chunk
# --------------------------------------------------------------------------------------------


@triton.jit
def largest(x, chunks, per, k, indices, values, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """The k largest magnitudes of each of `chunks` rows of `per` values: indices, ascending, and
    values. A NaN is the largest."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = tl.arange(0, WIDTH)
    exists = (row < chunks)[:, None] & (at < per)[None, :]
    own = tl.load(x + row[:, None] * per + at[None, :], mask=exists, other=0.0)
    sizes = tl.where(
        exists, tl.minimum(own.to(tl.int32, bitcast=True) & SIZE_BITS, INFINITE + 1), -1
    )  # all NaNs are equal
    low = tl.zeros((ROWS,), tl.int32)  # k or more reach it, fewer reach `high`
    high = tl.full((ROWS,), INFINITE + 2, tl.int32)
    for _ in range(31):  # high - low is halved, rounded up, until it is 1
        middle = low + ((high - low) >> 1)
        enough = tl.sum((sizes >= middle[:, None]).to(tl.int32), axis=1) >= k
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    more, equal = sizes > low[:, None], sizes == low[:, None]
    wanted = k - tl.sum(more.to(tl.int32), axis=1)
    taken = more | (
        equal & (tl.cumsum(equal.to(tl.int32), axis=1) <= wanted[:, None])
    )  # of equals the first
    to = row[:, None] * k + tl.cumsum(taken.to(tl.int32), axis=1) - 1
    tl.store(indices + to, tl.broadcast_to(at[None, :], (ROWS, WIDTH)).to(tl.int64), mask=taken)
    tl.store(values + to, own, mask=taken)
