"""Kernels read bf16 and half as the float32 that those widen to, and write them rounded once."""

from __future__ import annotations

from typing import TypeAlias

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.test_native import BUILT, levels
from tests.kernels.values import grids, keys, same, tensors_of
from thinwire.kernels import fast, int8, native, reference

pytestmark = pytest.mark.skipif(
    not BUILT, reason="built without a compiler: there are no native kernels"
)

NARROW = (torch.bfloat16, torch.float16)
GRIDS: tuple[tuple[int, reference.Grid], ...] = ((8, "tread"), (4, "tread"), (3, "rise"))
Told: TypeAlias = list[Tensor]
narrow = pytest.mark.parametrize("dtype", NARROW, ids=str)
sizes = st.one_of(st.integers(1, 700), st.sampled_from([255, 256, 257, 4097]))


def patterns(dtype: torch.dtype) -> Tensor:
    """Return all values of a type of 16 bits, in the order of their bits, then shuffled."""
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    order = torch.randperm(1 << 16, generator=torch.Generator().manual_seed(0))
    return torch.cat([every, every[order]]).view(dtype)


def encoded(x: Tensor, block: int, decay: float, key: reference.Key | None) -> Told:
    """Return what each kernel that encodes in blocks makes of values."""
    told = [fast.sign_encode(x, block)]
    before = torch.linspace(-3, 3, x.numel())
    for kept in (before, before.bfloat16(), int8.pack(before)):
        left = [fast.sign_encode_with_residual(x, kept, decay, block)]
        left += [
            fast.grid_encode_with_residual(x, kept, decay, block, *grid, key) for grid in GRIDS
        ]
        for payload, residual, finite in left:
            # In 8 bits, what is not finite has no form; feedback drops it.
            drops = residual.dtype == torch.uint8 and not finite
            told += [payload, finite] if drops else [payload, residual, finite]
    return told + [fast.grid_encode(x, block, *grid, key) for grid in GRIDS]


def taken(x: Tensor, per: int, k: int) -> Told:
    """Return the largest of rows, and those of a sum with a residual, and that sum."""
    rows = x[: x.numel() // per * per].view(-1, per)
    y, before = torch.empty(rows.shape), torch.linspace(-1, 1, rows.numel()).view(rows.shape)
    return [*fast.largest(rows, k), *fast.largest_sum(rows, before, 0.5, y, k), y]


def alike(told: Told, expected: Told) -> bool:
    return all(same(a, b) for a, b in zip(told, expected, strict=True))


@narrow
@levels
@pytest.mark.parametrize("key", [None, (3, 4)], ids=str)
@pytest.mark.parametrize("block", [8, 256, 1024, 1 << 17])
def test_every_value_is_encoded_as_its_float32(
    level: native.Level, dtype: torch.dtype, block: int, key: reference.Key | None
) -> None:
    x = patterns(dtype)
    with native.using(level):
        assert alike(encoded(x, block, 0.9, key), encoded(x.float(), block, 0.9, key))


@narrow
@levels
@pytest.mark.parametrize("per", [64, 320, 4096, 40_000])
def test_the_largest_of_every_value_are_those_of_their_float32(
    level: native.Level, dtype: torch.dtype, per: int
) -> None:
    x = patterns(dtype)
    with native.using(level):
        for k in (1, 7, 64):
            assert alike(taken(x, per, k), taken(x.float(), per, k))


@narrow
@levels
@given(
    x=tensors_of(sizes),
    block=st.sampled_from([8, 24, 256, 512, 0]),
    decay=st.sampled_from([1.0, 0.9]),
    grid=grids,
    key=keys,
)
def test_any_narrow_values_are_encoded_as_their_float32(
    level: native.Level,
    dtype: torch.dtype,
    x: Tensor,
    block: int,
    decay: float,
    grid: tuple[int, reference.Grid],
    key: reference.Key | None,
) -> None:
    x = x.to(dtype)
    block = block or x.numel()
    with native.using(level):
        told = [*encoded(x, block, decay, key), fast.grid_encode(x, block, *grid, key)]
        told += taken(x, min(64, x.numel()), 1)
    with native.using("torch"):
        x = x.float()
        expected = [*encoded(x, block, decay, key), fast.grid_encode(x, block, *grid, key)]
        expected += taken(x, min(64, x.numel()), 1)
    assert alike(told, expected)


@narrow
@levels
@given(
    x=tensors_of(sizes), block=st.sampled_from([8, 24, 256, 512, 0]), grid=grids, seed=st.integers()
)
@example(x=torch.randn(1 << 22) * 70_000, block=256, grid=(8, "tread"), seed=0)
@example(x=torch.randn(70_000) * 1e-7, block=256, grid=(4, "tread"), seed=0)
def test_what_is_decoded_is_rounded_once(
    level: native.Level,
    dtype: torch.dtype,
    x: Tensor,
    block: int,
    grid: tuple[int, reference.Grid],
    seed: int,
) -> None:
    n, block = x.numel(), block or x.numel()
    told: dict[str, Told] = {}
    draw = torch.Generator().manual_seed(seed % 2**32)
    before = torch.randn(n, generator=draw).to(dtype)
    for each in (level, "torch"):
        with native.using(each):
            payload, signs = fast.grid_encode(x, block, *grid, None), fast.sign_encode(x, block)
            out, total, sign, sign_total = (before.clone() for _ in range(4))
            fast.grid_decode(payload, n, block, *grid, torch.float32, out)
            fast.grid_accumulate(total, payload, block, *grid)
            fast.sign_decode(signs, n, block, torch.float32, sign)
            fast.sign_accumulate(sign_total, signs, block)
            told[each] = [out, total, sign, sign_total]
            plain = fast.grid_decode(payload, n, block, *grid, torch.float32)
    assert same(told[level][0], plain.to(dtype))
    assert same(told[level][1], (before.float() + plain).to(dtype))
    assert alike(told[level], told["torch"])


@narrow
@levels
def test_any_float32_is_rounded_as_torch_rounds_it(level: native.Level, dtype: torch.dtype) -> None:
    """A block of one value and a sign is that value's magnitude: every upper half of its bits, and
    what lies just beside a tie."""
    upper = torch.arange(1 << 15, dtype=torch.int32) << 16
    lower = torch.tensor([0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xF000, 0xFFFF])
    means = (upper[:, None] | lower.to(torch.int32)).view(-1).view(torch.float32)
    n = 8 * means.numel()
    bits = torch.full((means.numel(),), 0xAA, dtype=torch.uint8)
    payload = torch.cat([reference.as_bytes(means), bits])
    out = torch.empty(n, dtype=dtype)
    with native.using(level):
        fast.sign_decode(payload, n, 8, torch.float32, out)
    signs = torch.tensor([1.0, -1.0]).repeat(4)
    assert same(out, (means[:, None] * signs).view(-1).to(dtype))
    total = torch.zeros(n, dtype=dtype)
    with native.using(level):
        fast.sign_accumulate(total, payload, 8)
    assert same(total, torch.zeros(n, dtype=dtype).add_((means[:, None] * signs).view(-1)))


@levels
@pytest.mark.parametrize("by", [1.0, 0.5, 1 / 3, 3e38, 1e-40])
def test_a_product_in_bf16_is_rounded_as_torch_rounds_it(level: native.Level, by: float) -> None:
    x = patterns(torch.bfloat16)
    out = torch.empty_like(x)
    with native.using(level):
        finite = fast.scaled(x, by, out)
    assert same(out, x * by)
    assert finite is bool((x * by).isfinite().all())


@levels
def test_threads_change_nothing_of_narrow_values(level: native.Level) -> None:
    x, before, told = torch.randn(1_100_000).bfloat16(), torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with native.using(level):
                told.append([*encoded(x, 256, 1.0, None), *taken(x, 4096, 30)])
    finally:
        torch.set_num_threads(before)
    assert alike(*told)
