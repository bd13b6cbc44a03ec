"""Replicas whose parameters are cut by tensor parallelism, alone and below FSDP2."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import thinwire
from tests.engine.models import WIDTH, batch
from tests.ranks import run_ranks
from tests.shards import BYTES
from thinwire import Strategy
from thinwire.engine.shards import local_of
from thinwire.errors import CheckpointError
from thinwire.how import gather
from thinwire.on import deltas
from thinwire.what import feedback, uniform
from thinwire.when import every

CUT = {"0": ColwiseParallel(), "2": RowwiseParallel()}
STRATEGIES = {
    "dense": Strategy(),
    "deltas": Strategy(every(2), on=deltas()),
    "4 bits": Strategy(what=feedback(uniform(4)), how=gather()),
}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 32), nn.Tanh(), nn.Linear(32, 8))


def _train(model: nn.Module, optimizer: Any, replica: int, steps: int = 6) -> None:
    for step in range(steps):
        x, y = batch(step, replica)
        nn.functional.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def _whole(model: nn.Module) -> Tensor:
    values: list[Any] = [
        param.full_tensor() if hasattr(param, "full_tensor") else param
        for param in model.parameters()
    ]
    return torch.cat([value.detach().reshape(-1) for value in values])


def _cut(rank: int, names: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """By strategy: weights of two replicas of two parts each, and of the same two as they are."""
    mesh, made = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "tp")), {}
    for name in names:
        both = []
        for cut in (True, False):
            model: nn.Module = net()
            if cut:
                model = parallelize_module(model, mesh["tp"], CUT)
            optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
            group = None if cut else mesh["replicate"].get_group()
            with thinwire.attach(
                model,
                optimizer,
                STRATEGIES[name],
                mesh=mesh if cut else None,
                group=group,
                bucket_bytes=BYTES,
            ) as sync:
                _train(model, optimizer, rank // 2)
                with sync.common_weights():
                    both.append(_whole(model))
        made[name] = both[0], both[1]
    return made


@pytest.mark.parametrize(
    "names", [["dense"], pytest.param(["deltas", "4 bits"], marks=pytest.mark.long)]
)
def test_cut_by_tensor_parallelism_is_as_whole(names: list[str]) -> None:
    made = run_ranks(4, _cut, names)
    for name in names:
        cut, whole = made[0][name]
        assert all(torch.equal(each[name][0], cut) for each in made)
        # Blocks of codes are of other values where matrices are cut.
        assert float((cut - whole).abs().max()) < (0.1 if name == "4 bits" else 1e-5), name


def _cut_and_sharded(rank: int, strategy: Strategy) -> tuple[Tensor, Tensor, str, str]:
    names = ("replicate", "shard", "tp")
    mesh = init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=names)
    model: Any = parallelize_module(net(), mesh["tp"], CUT)
    for module in (model[0], model[2], model):
        fully_shard(module, mesh=mesh["shard"])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    begun = torch.cat([local_of(param).clone().reshape(-1) for param in model.parameters()])
    with thinwire.attach(model, optimizer, strategy, bucket_bytes=BYTES) as sync:
        _train(model, optimizer, rank // 2)
        sync.check()
        shard = sync.session.replica.name
        try:
            sync.state_dict()
            said = ""
        except CheckpointError as error:
            said = str(error)
        with sync.common_weights():
            ended = torch.cat([local_of(p).clone().reshape(-1) for p in model.parameters()])
    return begun, ended, shard, said


@pytest.mark.long
@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES.keys())
def test_fsdp_over_tensor_parallelism_trains_and_says_what_it_cannot_save(
    strategy: Strategy,
) -> None:
    made = run_ranks(8, _cut_and_sharded, strategy)
    for (begun, ended, shard, said), (_, other, same, _) in zip(made[:4], made[4:], strict=True):
        assert shard == same
        assert torch.equal(ended, other)
        assert bool(ended.isfinite().all())
        assert not torch.equal(begun, ended)
        assert "is sharded otherwise than by rows" in said
        assert "shard along the first dimension to save" in said
    assert len({shard for _, _, shard, _ in made}) == 4
