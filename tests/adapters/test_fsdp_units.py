"""What FSDP2 gathers together is found, and what cannot be encoded is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from tests.sharding import SIZES, gpt, mlp, shard, shard_sizes
from thinwire.adapters.fsdp_units import (
    TORCH_TRIED,
    codec_refusals,
    refuse_other_torch,
    unit_refusals,
    units_of,
)
from thinwire.adapters.zeropp import thin_collectives
from thinwire.errors import AttachError
from thinwire.what import (
    budget,
    by_role,
    cast,
    codebook,
    dct,
    dgc,
    ef21,
    entropy,
    feedback,
    fp4,
    fp8,
    hadamard,
    identity,
    lowrank,
    natural,
    nf4,
    randomk,
    sign,
    svd,
    ternary,
    topk,
    uniform,
)


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    """A process group of this process alone, which FSDP asks for."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    dist.init_process_group(
        "gloo", store=store, rank=0, world_size=1, timeout=timedelta(seconds=20)
    )
    yield
    dist.destroy_process_group()


SERVED = [
    identity(),
    cast("bf16"),
    uniform(8),
    uniform(4, grid="affine"),
    fp8(),
    fp4(),
    nf4(),
    natural("nearest"),
    sign(),
]


@pytest.mark.parametrize("argument", ["weights", "gradients"])
@pytest.mark.parametrize("codec", [None, *SERVED], ids=repr)
def test_codecs_without_state_and_of_fixed_size_are_served(argument: str, codec: Any) -> None:
    assert codec_refusals(argument, codec) == []


@pytest.mark.parametrize(
    "codec", [uniform(4, rounding="stochastic"), hadamard(64) >> uniform(4), ternary()], ids=repr
)
def test_draws_are_for_gradients_alone(codec: Any) -> None:
    assert codec_refusals("gradients", codec) == []
    (reason,) = codec_refusals("weights", codec)
    assert reason.startswith(f"weights={codec!r} draws at random")
    assert "the backward pass gathers weights again" in reason


@pytest.mark.parametrize(
    ("codec", "words"),
    [
        (feedback(uniform(4)), "keeps state ('residual')"),
        (feedback(lowrank(2)), "keeps state"),
        (ef21(uniform(2)), "keeps state ('known')"),
        (dgc(uniform(2)), "keeps state ('velocity')"),
        (codebook(2, 2, block=8, refresh=3), "keeps state"),
        (by_role(matrix=uniform(4), vector=identity()), "sends several packets"),
        (entropy(uniform(4)), "as many bytes as the data or the rank decides"),
        (topk(0.1), "leaves entries out, and no residual"),
        (randomk(0.1), "leaves entries out"),
        (budget(3.0, (0, 2, 4, 8), per=32, block=16), "leaves entries out"),
        (uniform(4, "row"), "goes by the shapes of parameters"),
        (svd(2, exact=True), "goes by the shapes of parameters"),
        (dct(4) >> uniform(4), "goes by the shapes of parameters"),
        (8, "weights=8 is no codec"),
    ],
    ids=repr,
)
def test_other_codecs_are_refused_by_name_and_reason(codec: Any, words: str) -> None:
    (reason,) = codec_refusals("weights", codec)
    assert reason.startswith(f"weights={codec!r}")
    assert words in reason


def test_other_versions_of_torch_are_refused_by_those_that_were_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for version in ("2.13.0", "2.13.1+cu130"):
        refuse_other_torch(version)
    for version in ("2.12.1", "2.14.0", "2.130.0", "3.0"):
        with pytest.raises(AttachError, match=f"tried with torch 2.13, and this is {version}"):
            refuse_other_torch(version)
    model = mlp()
    monkeypatch.setattr(torch, "__version__", "2.14.0")
    with pytest.raises(AttachError, match=r"2\.14\.0"):
        thin_collectives(model, weights=uniform(8))


def test_this_torch_was_tried() -> None:
    assert torch.__version__.startswith(f"{TORCH_TRIED[-1]}.")


def test_each_unit_names_its_module_and_what_it_gathers() -> None:
    units = units_of(mlp(mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16)))
    assert [unit.name for unit in units] == ["0", "2", "4"]
    assert {unit.dtypes for unit in units} == {("torch.bfloat16",)}
    assert [unit.shard_numel for unit in units] == [
        (inputs + 1) * outputs for inputs, outputs in pairwise(SIZES)
    ]
    model = gpt()
    assert [unit.name for unit in units_of(model)] == ["the model", "blocks.0", "blocks.1"]
    assert [unit.shard_numel for unit in units_of(model)] == shard_sizes(model)


def test_modules_that_are_sharded_together_are_one_unit() -> None:
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    fully_shard([a, b])
    assert len(units_of(nn.Sequential(a, b))) == 1


def _two_types() -> nn.Module:
    return shard(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).bfloat16()))


def _mixed() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.bias = nn.Parameter(layer.bias.detach().bfloat16(), requires_grad=False)
    return fully_shard(layer)


def test_types_may_differ_between_units_and_not_within_one() -> None:
    assert unit_refusals(units_of(_two_types()), 1, weights=True) == []
    (reason,) = unit_refusals(units_of(_mixed()), 1, weights=True)
    assert reason.startswith("the model gathers torch.bfloat16 and torch.float32 together")
    assert unit_refusals(units_of(_mixed()), 1, weights=False) == []


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "local"])
def test_a_node_has_at_least_one_rank(size: Any) -> None:
    (reason,) = unit_refusals(units_of(mlp()), size, weights=True)
    assert f"node_size={size!r}: expected an integer, at least 1" in reason


@pytest.mark.parametrize(
    ("make", "arguments", "words"),
    [
        (lambda: nn.Linear(2, 2), {"weights": uniform(8)}, "no module of this Linear is"),
        (mlp, {}, r"fully_shard\(reshard_after_forward=node_size\) is all that is needed"),
        (mlp, {"gradients": feedback(uniform(4))}, r"rank 0: gradients=feedback\(.* keeps state"),
        (mlp, {"weights": uniform(8), "node_size": 0}, "node_size=0"),
    ],
)
def test_the_call_refuses_before_anything_is_replaced(
    make: Any, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(AttachError, match=words):
        thin_collectives(make(), **arguments)


def test_a_replaced_collective_is_not_replaced_again() -> None:
    model = mlp()
    model[0].set_custom_all_gather(object())
    (reason,) = unit_refusals(units_of(model), 1, weights=True)
    assert reason.startswith("0 has a custom all-gather already")
