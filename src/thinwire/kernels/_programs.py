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

A program takes a tile of ROWS blocks of BLOCK values, SIZE = ROWS * BLOCK in all, from value
`first` on, `count` of which exist. Offsets within a tile are 32 bits wide, the tile's own place 64.
"""

import triton
import triton.language as tl

MAGIC = tl.constexpr(
    12582912.0
)  # 1.5 * 2^23: a small number added to it is rounded, half to even, into the lowest bits
SIZE_BITS = tl.constexpr(0x7FFFFFFF)  # all of a number but its sign
INFINITE = tl.constexpr(0x7F800000)
QUIET_NAN = tl.constexpr(0x7FC00000)
TINY = tl.constexpr(
    2.0**-100
)  # steps below have no inverse in float32, but that of a step lifted by the next
LIFT = tl.constexpr(2.0**64)
HUGE = tl.constexpr(2.0**64)  # magnitudes from here on are summed 2^-64 times as large
HUGE_BITS = tl.constexpr(0x5F800000)


@triton.jit
def _tile(n, SIZE: tl.constexpr):
    """The tile's first value, and how many of its values exist."""
    first = tl.program_id(0).to(tl.int64) * SIZE
    return first, tl.minimum(n - first, SIZE).to(tl.int32)


@triton.jit
def _rows_of(count, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The tile's rows, and which of them exist."""
    row = tl.arange(0, ROWS)
    return row, row * BLOCK < count


@triton.jit
def _summed(x, residual, decay, first, count, SIZE: tl.constexpr, FEEDBACK: tl.constexpr):
    """x + decay * residual, each operation rounded; x alone without FEEDBACK."""
    at = tl.arange(0, SIZE)
    y = tl.load(x + first + at, mask=at < count, other=0.0)
    if FEEDBACK:
        y = y + _wide(tl.load(residual + first + at, mask=at < count, other=0)) * decay
    return y


@triton.jit
def _wide(stored):
    """The residual as float32: it is stored as that, or as bfloat16's bits."""
    if stored.dtype == tl.int16:
        stored = (stored.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return stored


@triton.jit
def _store_residual(new_residual, x, mask):
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
def _largest(x):
    """The largest magnitude of each row as an integer; above INFINITE where there is a NaN."""
    return tl.max(x.to(tl.int32, bitcast=True) & SIZE_BITS, axis=1)


@triton.jit
def _draw(n, key0, key1):
    """reference.random_bits: the n-th word of a key."""
    x = n + key0.to(tl.uint32, bitcast=True)
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ key1.to(tl.uint32, bitcast=True)
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _pack(codes, to, SIZE: tl.constexpr, BITS: tl.constexpr):
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
def _unpack(codes, count, SIZE: tl.constexpr, BITS: tl.constexpr):
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
def _payload(table, each, head):
    """The heads and codes of a payload whose address is in a table; heads are whole words, so codes
    begin on one."""
    at = tl.load(table + each)
    return at.to(tl.pointer_type(tl.float32)), tl.multiple_of(
        at.to(tl.pointer_type(tl.uint8)) + head, 4
    )


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
        random_bits = (_draw(index.to(tl.uint32) >> 1, key0, key1) >> halves) & 0xFFFF
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
    row, exists = _rows_of(count, ROWS, BLOCK)
    x = tl.reshape(x, (ROWS, BLOCK))
    if GIVEN:
        step_bits = tl.load(given + first // BLOCK + row, mask=exists, other=1.0).to(
            tl.int32, bitcast=True
        )
    else:
        step_bits = _step_bits(_largest(x), TOP)
    tl.store(steps + first // BLOCK + row, step_bits.to(tl.float32, bitcast=True), mask=exists)
    own = _codes(x, step_bits, first, key0, key1, ROWS, BLOCK, TOP, ZERO, STOCHASTIC)
    _pack(tl.where(at < count, tl.reshape(own, (SIZE,)), 0).to(tl.uint32), codes, SIZE, BITS)
    if FEEDBACK:
        decoded = (own.to(tl.float32) - TOP) * step_bits.to(tl.float32, bitcast=True)[:, None]
        _store_residual(new_residual + first + at, tl.reshape(x - decoded, (SIZE,)), at < count)


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
    """What a payload's tile decodes to: (SIZE,)."""
    row, exists = _rows_of(count, ROWS, BLOCK)
    step = tl.load(steps + first // BLOCK + row, mask=exists, other=0.0)
    own = tl.reshape(_unpack(codes, count, ROWS * BLOCK, BITS), (ROWS, BLOCK))
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
    first, count = _tile(n, ROWS * BLOCK)
    y = _summed(x, residual, decay, first, count, ROWS * BLOCK, FEEDBACK)
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
    first, count = _tile(n, ROWS * BLOCK)
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
    first, count = _tile(n, ROWS * BLOCK)
    heads, own = _payload(table, 0, head)
    total = _grid_values(heads, own, first, count, ROWS, BLOCK, BITS, TOP)
    for each in range(1, payloads):
        heads, own = _payload(table, each, head)
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
    most = _largest(x)
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
    row, exists = _rows_of(count, ROWS, BLOCK)
    mean_bits = _mean_bits(tl.reshape(x, (ROWS, BLOCK)), count, ROWS, BLOCK, HALVINGS)
    tl.store(means + first // BLOCK + row, mean_bits.to(tl.float32, bitcast=True), mask=exists)
    below = (x < 0).to(tl.uint32)
    _pack(below, signs, ROWS * BLOCK, 1)
    if FEEDBACK:
        at = tl.arange(0, ROWS * BLOCK)
        _store_residual(
            new_residual + first + at, x - _signed(mean_bits, below, ROWS, BLOCK), at < count
        )


@triton.jit
def _sign_values(means, signs, first, count, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """What a payload's tile decodes to: (SIZE,)."""
    row, exists = _rows_of(count, ROWS, BLOCK)
    mean = tl.load(means + first // BLOCK + row, mask=exists, other=0.0)
    return _signed(
        mean.to(tl.int32, bitcast=True), _unpack(signs, count, ROWS * BLOCK, 1), ROWS, BLOCK
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
    first, count = _tile(n, ROWS * BLOCK)
    y = _summed(x, residual, decay, first, count, ROWS * BLOCK, FEEDBACK)
    _sign_put(y, first, count, means, signs, new_residual, ROWS, BLOCK, HALVINGS, FEEDBACK)


@triton.jit
def sign_decode(means, signs, n, out, ROWS: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr):
    """Means and signs -> out (n,), or added to it."""
    first, count = _tile(n, ROWS * BLOCK)
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
    first, count = _tile(n, ROWS * BLOCK)
    heads, own = _payload(table, 0, head)
    total = _sign_values(heads, own, first, count, ROWS, BLOCK)
    for each in range(1, payloads):
        heads, own = _payload(table, each, head)
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
