"""Values kept in 8 bits are the same bytes by each kernel; what they lose: test_stored.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.test_native import BUILT, levels
from tests.kernels.values import same, tensors_of
from thinwire.kernels import fast, int8, native, reference

pytestmark = pytest.mark.skipif(
    not BUILT, reason="built without a compiler: there are no native kernels"
)

tensors = tensors_of(st.one_of(st.integers(1, 700), st.sampled_from([255, 256, 257, 4097])))


@levels
@given(x=tensors)
@example(x=torch.arange(-128, 128) + 0.5)
@example(x=torch.randn(2_000_001))
@example(x=torch.full((300,), 3.4028234e38))
@example(x=torch.full((300,), 1e-45))
def test_bytes_and_values_are_the_references(level: native.Level, x: Tensor) -> None:
    x = x.nan_to_num(0.0)
    with native.using("torch"):
        kept = int8.pack(x)
        values = int8.unpack(kept, x.numel())
    with native.using(level):
        assert torch.equal(int8.pack(x), kept)
        assert same(int8.unpack(kept, x.numel()), values)


@levels
@pytest.mark.parametrize("block", [24, 256, 512, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_residual_in_8_bits_is_that_of_three_steps(
    level: native.Level, dtype: torch.dtype, block: int
) -> None:
    x, before = (torch.randn(100_003, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    x, kept = x.to(dtype), int8.pack(before)
    grid: tuple[int, reference.Grid] = (4, "tread")
    with native.using(level):
        told = [
            fast.grid_encode_with_residual(x, kept, 0.9, block, *grid, None),
            fast.sign_encode_with_residual(x, kept, 0.9, block),
        ]
        before = int8.unpack(kept, x.numel())
        expected = [
            fast.grid_encode_with_residual(x, before, 0.9, block, *grid, None),
            fast.sign_encode_with_residual(x, before, 0.9, block),
        ]
    for (payload, left, finite), (other, residual, _) in zip(told, expected, strict=True):
        assert torch.equal(payload, other)
        assert torch.equal(left, int8.pack(residual))
        assert finite
