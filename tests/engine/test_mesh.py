"""Process groups of a device mesh: of replicas, and of the shards of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

import thinwire
from tests.engine.models import mlp, sgd_of, train, weights_of
from tests.ranks import run_ranks
from tests.shards import Net, mesh_of, sharded
from thinwire import Strategy
from thinwire.engine.mesh import replicate_group, shard_groups
from thinwire.errors import AttachError
from thinwire.how import auto
from thinwire.on import deltas
from thinwire.when import by_speed, every


def _groups(rank: int) -> tuple[list[int], list[list[int]], bool]:
    mesh = mesh_of(2, 2)
    model = sharded(mesh["shard"])
    group = replicate_group(model, None, "replicate")
    shards = [dist.get_process_group_ranks(each) for each in shard_groups(model)]
    return dist.get_process_group_ranks(group), shards, shard_groups(mlp()) == []


def test_the_mesh_is_the_one_that_parameters_name() -> None:
    for rank, (replicas, shards, none) in enumerate(run_ranks(4, _groups)):
        assert replicas == [rank % 2, rank % 2 + 2]
        assert shards == [[rank // 2 * 2, rank // 2 * 2 + 1]]
        assert none


def _plain(rank: int) -> list[torch.Tensor]:
    """A model that is not sharded, among the ranks of one dimension of a mesh."""
    made = []
    mesh = mesh_of(2, 2)
    for options in ({"mesh": mesh}, {"group": mesh["replicate"].get_group()}):
        model = mlp()
        optimizer = sgd_of(model)
        with thinwire.attach(model, optimizer, **options):  # type: ignore[arg-type]
            train(model, optimizer, rank, range(2))
        made.append(weights_of(model))
    return made


def test_a_mesh_is_a_group_for_a_plain_model() -> None:
    by_rank = run_ranks(4, _plain)
    for by_mesh, by_group in by_rank:
        assert torch.equal(by_mesh, by_group)
    assert torch.equal(by_rank[0][0], by_rank[2][0])
    assert not torch.equal(by_rank[0][0], by_rank[1][0])


def _refused(rank: int) -> list[str]:
    mesh = mesh_of(2, 2)
    whole = init_device_mesh("cpu", (4,), mesh_dim_names=("shard",))
    ignoring = Net()
    fully_shard(ignoring, mesh=mesh["shard"], ignored_params={ignoring.head.bias})
    cases: list[tuple[Any, Strategy, dict[str, Any]]] = [
        (sharded(mesh), Strategy(), {}),
        (sharded(whole), Strategy(), {}),
        (sharded(whole), Strategy(), {"mesh": mesh, "mesh_dim": "data"}),
        (mlp(), Strategy(), {"mesh": mesh, "group": dist.group.WORLD}),
        (ignoring, Strategy(), {}),
        (sharded(mesh["shard"], offload_policy=CPUOffloadPolicy(pin_memory=False)), Strategy(), {}),
        (sharded(mesh["shard"]), Strategy(), {"overlap": "forward"}),
        (sharded(mesh["shard"]), Strategy(by_speed(every(4)), on=deltas()), {}),
        (sharded(mesh["shard"]), Strategy(how=auto()), {"source": "ddp"}),
    ]
    texts = []
    for model, strategy, options in cases:
        try:
            thinwire.attach(model, torch.optim.SGD(model.parameters(), 0.1), strategy, **options)
            texts.append("")
        except AttachError as error:
            texts.append(str(error))
    return texts


def test_what_cannot_be_is_refused_with_the_reason() -> None:
    due = [
        "that dimension is synchronised already",
        "none is 'replicate'",
        "none is 'data'",
        "give one of them",
        "'head.bias' is no shard beside others",
        "CPUOffloadPolicy",
        "take overlap='backward'",
        "compute together: take every",
        "choose 'shards' or 'manual'",
    ]
    made = run_ranks(4, _refused)
    for texts in made:
        for text, expected in zip(texts, due, strict=True):
            assert expected in text


def _one_problem(rank: int) -> str:
    """A problem of one rank of one replica."""
    model: Any = sharded(mesh_of(2, 2)["shard"])
    params = list(model.parameters())
    foreign = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([*params, foreign] if rank == 1 else params, 0.1)
    with pytest.raises(AttachError) as error:
        thinwire.attach(model, optimizer)
    return str(error.value)


def test_a_problem_of_one_shard_ends_attach_on_all_ranks() -> None:
    for text in run_ranks(4, _one_problem):
        assert "parameters that are not the model's" in text
