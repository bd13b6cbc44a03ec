"""Tiles by kernels are those of torch, to rounding; what no kernel takes is left alone."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.test_native import BUILT, levels
from thinwire.core import Part, RankContext, Spec, State
from thinwire.kernels import cosines, native
from thinwire.what import dct

pytestmark = pytest.mark.skipif(
    not BUILT, reason="built without a compiler: there are no native kernels"
)

SEAT = RankContext(0, (0,), 0, 0)


@levels
@pytest.mark.parametrize("size", [32, 64, 96, 256])
@pytest.mark.parametrize("extra", [(0, 0), (5, 70)])
def test_tiles_are_those_of_torch(level: native.Level, size: int, extra: tuple[int, int]) -> None:
    rows, columns = 2 * size + extra[0], 3 * size + extra[1]
    x = torch.randn(rows * columns, generator=torch.Generator().manual_seed(size))
    spec = Spec((Part("w", (rows, columns), 0, "matrix"),), 0, x.numel(), torch.float32)
    cores = []
    for each in (level, "torch"):
        with native.using(each):
            core, side = dct(size).split(x, spec, State(), SEAT)
            assert torch.allclose(dct(size).join(core, side, spec, State(), SEAT, 0), x, atol=1e-5)
        cores.append(core)
    assert torch.allclose(*cores, atol=1e-5)


def test_other_sizes_types_and_shapes_are_left_alone() -> None:
    for shape, dtype in (
        ((1, 1, 16, 16), torch.float32),
        ((1, 1, 64, 64), torch.float64),
        ((1, 1, 1, 64), torch.float32),
    ):
        area = torch.ones(shape, dtype=dtype)
        assert not cosines.forward(area, torch.empty(area.numel(), dtype=dtype))
        assert not cosines.backward(torch.empty(area.numel(), dtype=dtype), area)
