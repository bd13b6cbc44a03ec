"""A rank's shard of a DTensor, as a plain tensor."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from tests.ranks import run_ranks
from thinwire.engine.shards import (
    cut_over,
    is_sharded,
    like,
    local_of,
    offset_of,
    rows_of,
    warn_of_rows,
)
from thinwire.what import feedback, lowrank, uniform


def test_a_plain_tensor_is_its_own_shard() -> None:
    param = nn.Parameter(torch.ones(2, 3))
    assert not is_sharded(param)
    assert not local_of(param).requires_grad
    assert local_of(param).data_ptr() == param.data_ptr()
    assert (offset_of(param), rows_of(param)) == (0, "")
    assert like(param, local_of(param)) is not param


def _of_rank(rank: int) -> list[Any]:
    mesh = init_device_mesh("cpu", (3,))
    whole = torch.arange(7 * 4.0).view(7, 4)
    rows = nn.Parameter(distribute_tensor(whole, mesh, [Shard(0)]))
    low = offset_of(rows)
    assert low is not None
    held = local_of(rows).flatten()
    return [
        torch.equal(held, whole.flatten()[low : low + held.numel()]),
        held.numel(),
        torch.equal(like(rows, local_of(rows)).full_tensor(), whole),  # type: ignore[attr-defined]
        offset_of(distribute_tensor(whole, mesh, [Shard(1)])),
        offset_of(distribute_tensor(whole, mesh, [Replicate()])),
        [cut_over(distribute_tensor(whole, mesh, [how])) for how in (Shard(1), Replicate())],
    ]


def test_a_shard_of_rows_is_a_run_of_elements_of_the_whole() -> None:
    made = run_ranks(3, _of_rank)
    assert [each[1] for each in made] == [12, 12, 4]
    for matches, _, again, columns, all_of_it, cut in made:
        assert cut == [("0",), ()]
        assert matches
        assert again
        assert columns is None
        assert all_of_it == 0


@pytest.mark.parametrize("shape", [(), (0, 3)])
def test_tensors_without_rows(shape: tuple[int, ...]) -> None:
    assert local_of(torch.zeros(shape)).shape == shape


def test_a_codec_of_whole_parameters_says_that_it_sees_rows() -> None:
    with pytest.warns(UserWarning, match=r"lowrank\(.*one of 2 shards.*another method"):
        warn_of_rows(feedback(lowrank(2)), 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_rows(feedback(lowrank(2)), 1)
        warn_of_rows(feedback(uniform(4)), 2)
