"""Native rotations equal the reference bit for bit, in every build, for every size of a block."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.test_native import BUILT, levels
from tests.kernels.values import same, values
from thinwire.kernels import native, rotation

pytestmark = pytest.mark.skipif(
    not BUILT, reason="built without a compiler: there are no native kernels"
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def told(level: native.Level, x: Tensor, block: int, seed: int) -> list[Tensor]:
    """Return x turned, that turned back, and that added to a ramp."""
    n, draw = x.numel(), torch.Generator().manual_seed(seed)
    nbytes = -(-rotation.core_numel(n, block) // 8)
    signs = torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=draw)
    total = torch.linspace(-2, 2, n)
    with native.using(level):
        core = rotation.turned(x, block, signs)
        back = rotation.turned_back(core, n, block, signs)
        assert rotation.turned_back(core, n, block, signs, total) is total
    return [core, back, total]


@levels
@given(
    n=st.one_of(st.integers(1, 700), st.sampled_from([4096, 4097, 9000])),
    log=st.integers(1, 13),
    odd=st.sampled_from([0, 0, 2]),
    dtype=st.sampled_from(DTYPES),
)
def test_blocks_are_rotated_as_in_torch(
    level: native.Level, n: int, log: int, odd: int, dtype: torch.dtype
) -> None:
    x = values(n, n + log, 0.0, odd).to(dtype)
    made, expected = (told(each, x, 1 << log, n) for each in (level, "torch"))
    assert all(same(a, b) for a, b in zip(made, expected, strict=True))


@levels
def test_a_huge_block_is_rotated_by_quarters(level: native.Level) -> None:
    x = values((1 << 17) + 5, 0, 0.0, 0)
    made, expected = (told(each, x, 1 << 16, 1) for each in (level, "torch"))
    assert all(same(a, b) for a, b in zip(made, expected, strict=True))


def test_other_types_and_strides_go_to_torch() -> None:
    x, signs = torch.randn(20).double(), torch.tensor([3, 5, 255], dtype=torch.uint8)
    core = rotation.turned(x, 8, signs)
    assert core.dtype == torch.float64
    total = torch.zeros(2, 20, dtype=torch.float64).T[:, 0]
    rotation.turned_back(core, 20, 8, signs, total)
    assert torch.allclose(total, x)
