from typing import Any, get_args

import pytest
import torch

from thinwire.kernels import reference
from thinwire.what.scalar._grids import Grid, GridName, grid_of

GRIDS = [
    grid_of(name, bits, rounding, "absmax", None, None)
    for name in get_args(GridName)
    for bits, rounding in ((2, "nearest"), (5, "stochastic"), (8, "nearest"))
] + [grid_of("tread", 4, "nearest", "absmax", None, 0.25)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_a_header_is_read_back_from_as_many_bytes_as_its_grid_says(grid: Grid, dtype: Any) -> None:
    rows = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    header = grid.header(rows)
    head = torch.cat([torch.empty(0, dtype=torch.uint8), *map(reference.as_bytes, header)])
    assert head.numel() == 6 * grid.header_nbytes(dtype)
    again = grid.read_header(head, dtype)
    assert [each.tolist() for each in again] == [each.tolist() for each in header]


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_codes_count_steps_from_the_lowest_level(grid: Grid) -> None:
    rows = torch.randn(3, 40, generator=torch.Generator().manual_seed(1)) + 0.5
    header = grid.header(rows)
    low, step = (each[:, None] for each in grid.levels(header))
    codes = torch.arange(grid.last + 1, dtype=torch.uint8).expand(3, -1)
    values = grid.dequantise(codes, header, torch.float32)
    assert torch.allclose(values.double(), low + codes * step, rtol=1e-5, atol=1e-6)
    if grid.rounding == "nearest":
        assert torch.equal(grid.quantise(values, header, None), codes)


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_no_error_is_above_the_bound_and_some_come_close(grid: Grid) -> None:
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(4, 500, generator=generator)
    drawn = torch.randint(0, 65536, rows.shape, generator=generator)
    header = grid.header(rows)
    codes = grid.quantise(rows, header, drawn if grid.rounding == "stochastic" else None)
    error = (grid.dequantise(codes, header, torch.float32) - rows).double().abs()
    bound = grid.error_bound(rows)
    assert (error <= bound).all()
    assert (error > 0.8 * bound).any()


def test_a_fixed_step_has_a_code_for_nan_that_no_value_takes() -> None:
    grid = grid_of("tread", 3, "nearest", "absmax", None, 0.5)
    rows = torch.tensor([[float("nan"), float("inf"), -100.0, 0.0, 100.0]])
    codes = grid.quantise(rows, grid.header(rows), None)
    assert codes.tolist() == [[7, 7, 0, 3, 6]]
    values = grid.dequantise(codes, (), torch.float32)
    assert values[0, :2].isnan().all()
    assert values[0, 2:].tolist() == [-1.5, 0.0, 1.5]
