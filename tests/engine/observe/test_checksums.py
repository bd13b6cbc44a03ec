"""Checksums of weights."""

from __future__ import annotations

import pytest
import torch

from thinwire.engine.observe.checksums import ROW, checksum, checksums, digest


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool]
)
@pytest.mark.parametrize("size", [0, 1, 7, ROW, 3 * ROW + 5, 20 * ROW])
def test_checksums_hold_every_word_and_its_place(dtype: torch.dtype, size: int) -> None:
    drawn = torch.Generator().manual_seed(size)
    x = (100 * torch.randn(size, generator=drawn)).to(dtype)
    own = int(checksum(x))
    assert own == int(checksum(x.clone()))
    bits = x.view(torch.uint8) if size else x
    for place in (
        torch.randint(0, max(bits.numel(), 1), (20,), generator=drawn).tolist() if size else []
    ):
        flipped = bits.clone()
        flipped[place] ^= 0x80 if dtype != torch.bool else 1
        assert (
            int(checksum(flipped.view(dtype) if dtype != torch.bool else flipped.to(torch.bool)))
            != own
        )


def test_differences_that_cancel_in_a_plain_sum_are_found() -> None:
    x = torch.randn(4 * ROW, generator=torch.Generator().manual_seed(0))
    swapped, signs = x.clone(), x.clone()
    swapped[[3, 9]] = x[[9, 3]]
    signs[[5, ROW + 5]] = -x[[5, ROW + 5]]
    rows = torch.cat([x[ROW : 2 * ROW], x[:ROW], x[2 * ROW :]])
    assert len({int(checksum(each)) for each in (x, swapped, signs, rows)}) == 4
    assert digest([x, signs]) != digest([signs, x])


def test_a_view_has_the_checksum_of_its_values() -> None:
    x = torch.randn(30, 40)
    assert int(checksum(x.t())) == int(checksum(x.t().contiguous()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_many_have_the_checksums_of_each_by_itself(dtype: torch.dtype) -> None:
    drawn = torch.Generator().manual_seed(0)
    sizes = [5, 0, 7, ROW, 5, ROW + 1, 3 * ROW, 5, 1, ROW, *[300] * 1000]
    tensors = [(100 * torch.randn(size, generator=drawn)).to(dtype) for size in sizes]
    assert checksums(tensors) == [int(checksum(each)) for each in tensors]
    assert checksums([]) == []
