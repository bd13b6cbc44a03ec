"""Each fast kernel gives the reference's bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.test_native import BUILT, levels, sides
from tests.kernels.values import ODD, grids, keys, same, tensors_of, values
from thinwire.kernels import fast, native, reference
from thinwire.what import topk as topk_codec
from thinwire.what.sparse import _indices

pytestmark = pytest.mark.skipif(
    not BUILT, reason="built without a compiler: there are no native kernels"
)


blocks = st.sampled_from([8, 16, 24, 256, 512, 4096, 0])


sizes = st.one_of(st.integers(1, 700), st.sampled_from([255, 256, 257, 4095, 4096, 4097, 9000]))


tensors = tensors_of(sizes)


KEPT = (torch.float32, torch.bfloat16)


@levels
@given(x=tensors, block=blocks, grid=grids, key=keys)
def test_grid_encode_and_decode(
    level: native.Level,
    x: Tensor,
    block: int,
    grid: tuple[int, reference.Grid],
    key: reference.Key | None,
) -> None:
    block = block or x.numel()
    expected = reference.grid_encode(x, block, *grid, key)
    with native.using(level):
        payload = fast.grid_encode(x, block, *grid, key)
        decoded = fast.grid_decode(payload, x.numel(), block, *grid, torch.float32)
        total = x.flip(0).clone()
        fast.grid_accumulate(total, payload, block, *grid)
    assert same(payload, expected)
    plain = reference.grid_decode(expected, x.numel(), block, *grid, torch.float32)
    assert same(decoded, plain)
    assert same(total, x.flip(0) + plain)


@levels
@given(x=tensors, block=blocks, grid=grids, key=keys, scale=st.floats(0.01, 2.0))
def test_grid_encode_with_steps_of_ones_own(
    level: native.Level,
    x: Tensor,
    block: int,
    grid: tuple[int, reference.Grid],
    key: reference.Key | None,
    scale: float,
) -> None:
    block = block or x.numel()
    steps = reference.block_steps(reference.to_blocks(x, block), *grid) * scale
    with native.using(level):
        payload = fast.grid_encode(x, block, *grid, key, steps)
    assert same(payload, reference.grid_encode(x, block, *grid, key, steps))


@levels
@given(
    x=tensors,
    seed=st.integers(0, 99),
    block=blocks,
    grid=grids,
    key=keys,
    decay=st.sampled_from([1.0, 0.9, 0.0]),
    kept=st.sampled_from(KEPT),
)
@example(
    x=values(70_000, 1, 0.0, 5),
    seed=1,
    block=256,
    grid=(4, "tread"),
    key=None,
    decay=1.0,
    kept=torch.bfloat16,
)
@example(
    x=values(70_000, 1, 0.0, 5),
    seed=1,
    block=256,
    grid=(8, "tread"),
    key=(1, 2),
    decay=0.9,
    kept=torch.float32,
)
@example(
    x=values(70_000, 1, 0.0, 5),
    seed=1,
    block=1024,
    grid=(2, "rise"),
    key=None,
    decay=0.9,
    kept=torch.bfloat16,
)
@example(
    x=torch.full((300,), 3.4e38),
    seed=1,
    block=256,
    grid=(1, "rise"),
    key=None,
    decay=0.0,
    kept=torch.bfloat16,
)
def test_grid_encode_with_residual(
    level: native.Level,
    x: Tensor,
    seed: int,
    block: int,
    grid: tuple[int, reference.Grid],
    key: reference.Key | None,
    decay: float,
    kept: torch.dtype,
) -> None:
    before, block = values(x.numel(), seed, 0.0, 1).to(kept), block or x.numel()
    with native.using(level):
        told = fast.grid_encode_with_residual(x, before, decay, block, *grid, key)
    with native.using("torch"):
        expected = fast.grid_encode_with_residual(x, before, decay, block, *grid, key)
    assert told[1].dtype == kept
    assert all(same(a, b) for a, b in zip(told, expected, strict=True))


@levels
@given(
    n=sizes,
    seed=st.integers(0, 2**32),
    count=st.integers(1, 5),
    block=blocks,
    grid=grids,
    key=keys,
    odd=st.sampled_from([0, 0, 2]),
)
def test_grid_sum_encode(
    level: native.Level,
    n: int,
    seed: int,
    count: int,
    block: int,
    grid: tuple[int, reference.Grid],
    key: reference.Key | None,
    odd: int,
) -> None:
    block = block or n
    payloads = [
        reference.grid_encode(values(n, seed + i, 0.0, odd), block, *grid, None)
        for i in range(count)
    ]
    with native.using(level):
        payload = fast.grid_sum_encode(payloads, n, block, *grid, key, torch.float32)
    with native.using("torch"):
        assert same(payload, fast.grid_sum_encode(payloads, n, block, *grid, key, torch.float32))


@levels
@given(
    x=tensors,
    seed=st.integers(0, 99),
    block=blocks,
    count=st.integers(1, 4),
    decay=st.sampled_from([1.0, 0.9]),
    kept=st.sampled_from(KEPT),
)
@example(x=torch.ones(70_001), seed=0, block=0, count=1, decay=1.0, kept=torch.float32)
@example(x=values(70_000, 1, 0.0, 5), seed=1, block=256, count=1, decay=0.9, kept=torch.bfloat16)
@example(
    x=torch.zeros(1024).index_fill(0, torch.tensor(9), 3.4028e38),
    seed=1,
    block=0,
    count=1,
    decay=1.0,
    kept=torch.bfloat16,
)
def test_sign(
    level: native.Level,
    x: Tensor,
    seed: int,
    block: int,
    count: int,
    decay: float,
    kept: torch.dtype,
) -> None:
    n, before, block = x.numel(), values(x.numel(), seed, 0.0, 1), block or x.numel()
    payloads = [reference.sign_encode(values(n, seed + i, 0.0, 0), block) for i in range(count)]
    told = {}
    for each in (level, "torch"):
        with native.using(each):
            payload = fast.sign_encode(x, block)
            total = before.clone()
            fast.sign_accumulate(total, payload, block)
            left = fast.sign_encode_with_residual(x, before.to(kept), decay, block)
            decoded = fast.sign_decode(payload, n, block, torch.float32)
            told[each] = [
                payload,
                decoded,
                total,
                *left,
                fast.sign_sum_encode(payloads, n, block, torch.float32),
            ]
    assert all(same(a, b) for a, b in zip(told[level], told["torch"], strict=True))


@levels
@given(x=tensors, chunks=st.integers(1, 9), share=st.floats(0, 1), rounded=st.booleans())
@example(x=values(200_000, 1, 0.0, 5), chunks=1, share=0.01, rounded=False)
@example(x=torch.zeros(100_000), chunks=1, share=0.1, rounded=True)
def test_largest(level: native.Level, x: Tensor, chunks: int, share: float, rounded: bool) -> None:
    x = x.round() if rounded else x  # many equals
    rows = x[: max(x.numel() // chunks, 1) * min(chunks, x.numel())].view(
        min(chunks, x.numel()), -1
    )
    k = max(1, int(share * rows.shape[1]))
    with native.using(level):
        indices, found = fast.largest(rows, k)
    expected = reference.largest(rows, k)
    assert same(indices, expected)
    assert same(found, rows.gather(1, expected))


@levels
@given(
    x=tensors,
    chunks=st.integers(1, 9),
    share=st.floats(0, 1),
    decay=st.sampled_from([0.0, 0.95, 1.0]),
)
@example(x=values(200_000, 1, 0.0, 5), chunks=1, share=0.01, decay=0.95)
@example(x=values(6400, 1, 0.0, 5), chunks=100, share=0.125, decay=1.0)
def test_largest_of_a_sum(
    level: native.Level, x: Tensor, chunks: int, share: float, decay: float
) -> None:
    rows = x[: max(x.numel() // chunks, 1) * min(chunks, x.numel())].view(
        min(chunks, x.numel()), -1
    )
    before = rows.flip(0, 1).contiguous()
    k = max(1, int(share * rows.shape[1]))
    y = torch.empty_like(rows)
    with native.using(level):
        indices, found = fast.largest_sum(rows, before, decay, y, k)
    expected = reference.summed(rows, before, decay)
    assert same(y, expected)
    assert same(indices, reference.largest(expected, k))
    assert same(found, expected.gather(1, indices))


@levels
@given(
    kinds=st.lists(
        st.sampled_from(["alike", "huge", "tiny", "zeros", "equal", "rounded", "odd"]),
        min_size=1,
        max_size=14,
    ),
    k=st.integers(1, 64),
    seed=st.integers(0, 99),
)
@example(kinds=["alike"] * 8, k=8, seed=0)
@example(kinds=["alike", "huge", "tiny", "alike", "zeros"], k=8, seed=1)
def test_largest_of_chunks_of_64_side_by_side(
    level: native.Level, kinds: list[str], k: int, seed: int
) -> None:
    """Chunks are sought four at a time from the last one's bar on: whatever is between or after
    them, each has its own k."""
    rows = torch.randn(len(kinds), 64, generator=torch.Generator().manual_seed(seed))
    scale = {"huge": 1e30, "tiny": 1e-38, "zeros": 0.0}
    for row, kind in zip(rows, kinds, strict=True):
        row.mul_(scale.get(kind, 1.0))
        if kind == "equal":
            row.fill_(0.5)
        elif kind == "rounded":
            row.round_()
        elif kind == "odd":
            row[:12] = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0] * 3)
    y, before = torch.empty_like(rows), rows.roll(1, 0)
    with native.using(level):
        indices, found = fast.largest(rows, k)
        of_sum, _ = fast.largest_sum(rows, before, 0.5, y, k)
    expected = reference.largest(rows, k)
    assert same(indices, expected)
    assert same(found, rows.gather(1, expected))
    assert same(y, reference.summed(rows, before, 0.5))
    assert same(of_sum, reference.largest(y, k))


@levels
@given(x=tensors, chunks=st.integers(1, 9), share=st.floats(0, 1))
@example(x=values(200_000, 1, 0.0, 5), chunks=3000, share=0.125)
def test_what_is_left_at_places(level: native.Level, x: Tensor, chunks: int, share: float) -> None:
    rows = x[: max(x.numel() // chunks, 1) * min(chunks, x.numel())].view(
        min(chunks, x.numel()), -1
    )
    indices = reference.largest(rows, max(1, int(share * rows.shape[1])))
    found = rows.gather(1, indices)
    y, said = rows.clone(), found.flip(0)
    with native.using(level):
        finite = fast.leave(y, indices, found, said)
    rest = found - said
    assert same(y, rows.scatter(1, indices, rest))
    assert bool(finite) == bool(rest.isfinite().all())


@levels
@given(
    x=tensors,
    bar=st.one_of(st.floats(0, 3, width=32), st.sampled_from(ODD)),
    most=st.one_of(st.none(), st.integers(0, 300)),
)
def test_above(level: native.Level, x: Tensor, bar: float, most: int | None) -> None:
    with native.using(level):
        told = fast.above(x, torch.tensor(bar), most)
    with native.using("torch"):
        expected = fast.above(x, torch.tensor(bar), most)
    if isinstance(expected, int):
        assert told == expected
    else:
        assert not isinstance(told, int)
        assert same(told[0], expected[0])
        assert same(told[1], expected[1])


@levels
@given(
    chunks=st.integers(1, 5),
    per=st.integers(1, 5000),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
    coding=st.sampled_from(_indices.CODINGS),
)
def test_places(
    level: native.Level, chunks: int, per: int, share: float, seed: int, coding: _indices.Coding
) -> None:
    k, draw = int(share * per), torch.Generator().manual_seed(seed)
    indices = torch.stack(
        [torch.randperm(per, generator=draw)[:k].sort().values for _ in range(chunks)]
    )
    with native.using("torch"):
        expected = _indices.write(indices, per, coding)
    with native.using(level):
        side = _indices.write(indices, per, coding)
        back = _indices.read(side, k, per, chunks, topk_codec(1), coding)
    assert same(side, expected)
    assert same(back, indices)


@levels
@given(
    rows=sides,
    n=st.integers(1, 70),
    turned=st.booleans(),
    rank=st.integers(1, 19),
    seed=st.integers(0, 99),
    odd=st.sampled_from([0, 0, 2]),
)
def test_outer(
    level: native.Level, rows: int, n: int, turned: bool, rank: int, seed: int, odd: int
) -> None:
    rows, n = (n, rows) if turned else (rows, n)
    p, q = (
        values(rows * rank, seed, 0.0, odd).view(rows, rank),
        values(n * rank, seed + 1, 0.0, 0).view(n, rank),
    )
    expected = torch.empty(rows, n)
    reference.outer(p, q, expected)
    out = torch.empty(rows, n)
    with native.using(level):
        fast.outer(p, q, out)
    assert same(out, expected)
    if not odd:
        torch.testing.assert_close(out, p @ q.T)
