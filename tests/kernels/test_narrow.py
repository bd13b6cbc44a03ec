"""Kernels read bf16 and half as they read the float32 that those widen to: the same bits."""

from __future__ import annotations

from typing import TypeAlias

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.test_native import BUILT, levels
from tests.kernels.values import grids, keys, same, tensors_of
from thinwire.kernels import fast, native, reference

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
    for kept in (before, before.bfloat16()):
        told += fast.sign_encode_with_residual(x, kept, decay, block)
        for grid in GRIDS:
            told += fast.grid_encode_with_residual(x, kept, decay, block, *grid, key)
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
