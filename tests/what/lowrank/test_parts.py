"""Parts of a span as matrices, orthonormal bases, and how far a projection may be off."""

from __future__ import annotations

import pytest
import torch

from thinwire.core import Part, RankContext, Spec
from thinwire.what.lowrank._parts import (
    bases,
    matrix,
    numbers,
    projection_bound,
    run,
    runs,
    shrinks,
    warm,
)

PARTS = (
    Part("w", (6, 5), 0, "matrix"),
    Part("conv", (4, 2, 3), 30, "matrix"),
    Part("b", (7,), 54, "vector"),
    Part("scale", (), 61, "vector"),
    Part("none", (0, 3), 62, "matrix"),
)
SPEC = Spec(PARTS, 0, 62, torch.float32)


def test_a_part_is_its_first_dimension_by_all_others() -> None:
    shapes = {extent.part.name: matrix(extent) for extent in SPEC.extents()}
    assert shapes == {"w": (6, 5), "conv": (4, 6), "b": (1, 7), "scale": (1, 1)}
    assert runs(SPEC) == [(0, 6, 5), (30, 4, 6), (54, 1, 7), (61, 1, 1)]


def test_a_part_that_is_cut_is_one_row() -> None:
    assert runs(SPEC.span(3, 54)) == [(0, 1, 27), (27, 4, 6)]
    assert runs(Spec((), 0, 0, torch.float32)) == []


@pytest.mark.parametrize(("rank", "names"), [(1, ["w", "conv"]), (2, ["w", "conv"]), (3, [])])
def test_factors_are_for_whole_matrices_that_they_shorten(rank: int, names: list[str]) -> None:
    assert [each.part.name for each in SPEC.extents() if shrinks(each, rank)] == names
    (cut, *_) = SPEC.span(3, 54).extents()
    assert not shrinks(cut, 1)


def test_a_run_is_a_view() -> None:
    x = torch.zeros(62)
    (_, conv, *_) = SPEC.extents()
    run(x, conv).fill_(1)
    assert x.sum() == 24
    assert x[30:54].all()


def test_bases_are_orthonormal_and_in_the_order_of_their_matrices() -> None:
    draw = torch.Generator().manual_seed(0)
    tensors = [torch.randn(n, 2, generator=draw) for n in (5, 8, 5, 3)]
    tensors[2] = tensors[2] * 1e-20
    tensors[3][:, 1] = tensors[3][:, 0]  # of rank 1
    for basis, tensor in zip(bases(tensors), tensors, strict=True):
        assert torch.allclose(basis.T @ basis, torch.eye(2), atol=1e-5)
        assert torch.allclose(basis @ (basis.T @ tensor), tensor, rtol=1e-4, atol=1e-6)
    assert bases([]) == []


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_a_factor_of_no_use_leaves_the_old_one(bad: float) -> None:
    before = torch.tensor([[0.5], [1.0]])
    assert warm(torch.tensor([[2.0], [-8.0]]), before).tolist() == [[0.25], [-1.0]]
    tiny = torch.full((2, 1), 1e-38)
    assert warm(tiny, before).tolist() == [[1.0], [1.0]]
    assert torch.equal(warm(torch.full((2, 1), bad), before), before)


def test_several_tensors_are_one_packet_of_numbers() -> None:
    x, ctx = torch.zeros(0), RankContext(0, (0,), 0, 0)
    packet = numbers([torch.ones(2, 1), torch.full((1, 3), 2.0)], SPEC, x, ctx)
    assert packet.open(packet.payload, 0).tolist() == [1, 1, 2, 2, 2]
    assert numbers([], SPEC, x, ctx).payload.numel() == 0


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_each_value_of_a_matrix_may_be_off_by_its_length_and_others_not(scale: float) -> None:
    x = scale * torch.randn(62, generator=torch.Generator().manual_seed(1))
    first = next(iter(SPEC.extents()))
    bound = projection_bound(x, [first], SPEC)
    length = float(x[:30].double().norm())
    assert bound.dtype == torch.float64
    assert torch.allclose(bound[:30], torch.full((30,), length).double(), rtol=1e-4)
    assert bool((bound[:30] >= length).all())
    assert not bound[30:].any()
    assert not projection_bound(torch.zeros(62), [first], SPEC).any()
