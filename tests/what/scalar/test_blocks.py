"""Pieces of parameters in blocks: every value is in one block, and no block crosses a piece."""

from __future__ import annotations

import pytest
import torch

from thinwire.core import Part, Spec
from thinwire.what.scalar._blocks import in_rows, layout_of, sizes_of

SPEC = Spec((Part("a", (3, 5), 0, "matrix"), Part("b", (9,), 15, "vector")), 0, 24, torch.float32)


@pytest.mark.parametrize(
    ("run", "per", "sizes"),
    [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (10, 0, [10]), (0, 4, []), (3, 4, [3])],
)
def test_a_parameter_is_cut_in_pieces(run: int, per: int, sizes: list[int]) -> None:
    assert sizes_of(run, per) == sizes


@pytest.mark.parametrize("per", [0, 4, 8])
def test_no_block_crosses_a_piece_and_no_value_is_lost(per: int) -> None:
    layout, x = layout_of(SPEC, per, 4), torch.arange(1.0, 25)
    real = layout.real(x.device)
    rows = in_rows(x, layout, real)
    assert real is not None, "15 and 9 are not multiples of 4"
    assert torch.equal(rows[real], x)
    assert not rows[~real].any()
    assert int(layout.sizes.sum()) == 24
    assert layout.owner.bincount().tolist() == layout.rows.tolist()
    held = [int(real[layout.owner == piece].sum()) for piece in range(len(layout.sizes))]
    assert held == layout.sizes.tolist()


def test_a_span_may_begin_inside_a_parameter() -> None:
    assert layout_of(SPEC.span(5, 24), 8, 4).sizes.tolist() == [8, 2, 8, 1]


def test_blocks_that_are_full_need_no_mask() -> None:
    layout, x = layout_of(Spec((), 0, 16, torch.float32), 8, 4), torch.arange(16.0)
    assert layout.real(x.device) is None
    assert torch.equal(in_rows(x, layout, None), x.view(4, 4))


def test_groups_are_the_blocks_of_each_width_in_use() -> None:
    layout = layout_of(Spec((), 0, 24, torch.float32), 8, 4)
    groups = layout.groups(torch.tensor([4, 0, 2]), torch.device("cpu"))
    assert [(bits, blocks.tolist()) for bits, blocks in groups] == [(2, [4, 5]), (4, [0, 1])]
