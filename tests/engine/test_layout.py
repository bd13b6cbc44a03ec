"""Which parameters share a bucket."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from thinwire.engine.layout import Named, roles, runs_of
from thinwire.errors import AttachError
from thinwire.when import every, staggered


def names(runs: list[list[Named]]) -> list[list[str]]:
    return [[name for name, *_ in run] for run in runs]


def nbytes(run: list[Named]) -> int:
    return sum(param.numel() * param.dtype.itemsize for _, param, _ in run)


def layers(count: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(10, 10, bias=False) for _ in range(count)))  # 400 bytes each


def test_buckets_run_from_the_last_parameter_to_the_first_and_close_at_their_size() -> None:
    assert names(runs_of(layers(5), 800, every(1))) == [
        ["4.weight", "3.weight"],
        ["2.weight", "1.weight"],
        ["0.weight"],
    ]


def test_a_bucket_has_one_dtype() -> None:
    model = layers(4)
    model[1].to(torch.bfloat16)  # type: ignore[index]
    for run in runs_of(model, 1 << 20, every(1)):
        assert len({param.dtype for _, param, _ in run}) == 1


def test_what_does_not_train_is_in_no_bucket() -> None:
    model = layers(3)
    model[1].requires_grad_(False)  # type: ignore[index]
    assert names(runs_of(model, 1 << 20, every(1))) == [["2.weight", "0.weight"]]


def test_fragments_are_of_one_size_and_have_as_many_buckets_each() -> None:
    runs = runs_of(layers(8), 800, staggered(4, every(4)))
    assert len(runs) % 4 == 0
    sizes = [sum(nbytes(run) for run in runs[part::4]) for part in range(4)]
    assert sizes == [800] * 4
    assert sorted(name for run in names(runs) for name in run) == [f"{i}.weight" for i in range(8)]


def test_fewer_parameters_than_fragments_are_refused() -> None:
    with pytest.raises(AttachError, match="wants 4 fragments and the model has only 3"):
        runs_of(layers(3), 800, staggered(4, every(4)))


def test_a_role_is_read_off_the_module_and_the_dimensions() -> None:
    model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2))
    role = roles(model)
    assert [role[id(param)] for param in model.parameters()] == ["embedding", "matrix", "vector"]
