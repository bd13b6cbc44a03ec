"""Parts sent as factors: which part has them, where they lie in the core, and how shapes fold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from thinwire.core import Extent, Part, RankContext, Spec, State
from thinwire.errors import PayloadError
from thinwire.what.lowrank._factored import Factored, cube, folded, leading
from thinwire.what.lowrank._parts import matrix

PARTS = (
    Part("a", (4, 6), 0, "matrix"),
    Part("bias", (5,), 24, "vector"),
    Part("b", (4, 6), 29, "matrix"),
)
SPEC = Spec(PARTS, 0, 53, torch.float32)
CTX = RankContext(0, (0, 1), 0, 0)


@dataclass(frozen=True)
class _Means(Factored):
    """The mean of each row: exact for matrices of equal columns."""

    def _shape(self, extent: Extent) -> tuple[int, ...]:
        return matrix(extent)

    def _count(self, shape: tuple[int, ...]) -> int:
        return shape[0] if shape[0] > 1 else shape[1]

    def _factors_of(
        self, xs: Tensor, unit: Tensor, generator_of: Callable[[int], torch.Generator]
    ) -> Tensor:
        assert float(xs.abs().max()) <= 1.0, "scaled to a largest entry of 1"
        return (xs * unit).mean(2)

    def _whole(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        return values.view(-1, 1).expand(shape)


def there_and_back(x: Tensor, spec: Spec = SPEC) -> tuple[Tensor, Tensor]:
    codec = _Means()
    core, side = codec.split(x, spec, State(), CTX)
    assert side.numel() == codec.side_nbytes(spec, core.numel()) == 0
    assert core.numel() == codec.core_numel(spec)
    return core, codec.join(core, side, spec, State(), CTX, 1)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_factors_lie_part_by_part_between_the_values_of_others(scale: float) -> None:
    rows = scale * torch.arange(1.0, 9.0)
    x = torch.cat([rows[:4].repeat_interleave(6), torch.ones(5), rows[4:].repeat_interleave(6)])
    core, back = there_and_back(x)
    assert torch.allclose(core, torch.cat([rows[:4], torch.ones(5), rows[4:]]), rtol=1e-6, atol=0)
    assert torch.allclose(back, x, rtol=1e-6, atol=0)


def test_a_matrix_that_is_not_finite_spoils_no_other() -> None:
    x = torch.ones(53)
    x[3] = float("inf")
    _, back = there_and_back(x)
    assert back[:24].isnan().all()
    assert torch.equal(back[24:], torch.ones(29))


def test_what_is_cut_or_has_no_parts_is_sent_as_values() -> None:
    x = torch.arange(10.0)
    for spec in (SPEC.span(2, 12), Spec((), 0, 10, torch.float32)):
        core, back = there_and_back(x, spec)
        assert torch.equal(core, x)
        assert torch.equal(back, x)


def test_bytes_beside_the_core_are_refused() -> None:
    with pytest.raises(PayloadError):
        _Means().join(torch.zeros(13), torch.zeros(1, dtype=torch.uint8), SPEC, State(), CTX, 1)


@pytest.mark.parametrize(
    ("shape", "fold", "seen"),
    [
        ((12, 5), 4, (4, 3, 5)),
        ((12, 5), 5, (12, 5)),
        ((4, 5), 4, (4, 5)),
        ((12, 5), 0, (12, 5)),
        ((12, 5, 2), 4, (12, 5, 2)),
    ],
)
def test_a_matrix_is_folded_where_the_blocks_divide_it(
    shape: tuple[int, ...], fold: int, seen: tuple[int, ...]
) -> None:
    assert folded(shape, fold) == seen


@pytest.mark.parametrize(
    ("shape", "seen"),
    [((8, 3, 2, 2), (8, 3, 4)), ((8, 3, 5), (8, 3, 5)), ((8, 3), (4, 2, 3)), ((), (1,))],
)
def test_a_kernel_has_its_places_last(shape: tuple[int, ...], seen: tuple[int, ...]) -> None:
    part = Part("w", shape, 0, "matrix")
    (extent,) = Spec((part,), 0, part.numel, torch.float32).extents()
    assert cube(extent, 4) == seen


def test_leading_directions_hold_the_most() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = (
        torch.randn(3, 6, 40, generator=draw) * torch.tensor([9.0, 7, 0.1, 0.1, 0.1, 0.1])[:, None]
    )
    basis = leading(rows, 2)
    assert (basis.shape, basis.dtype) == ((3, 6, 2), rows.dtype)
    assert torch.allclose(basis.mT @ basis, torch.eye(2).expand(3, 2, 2), atol=1e-5)
    left = rows - basis @ (basis.mT @ rows)
    assert float(left.norm() / rows.norm()) < 0.05
