"""Sharded models in loops, and failures, that their author did not have in mind."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
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
from tests.engine.models import mlp
from tests.ranks import run_ranks
from tests.shards import BYTES, CLASSES, WIDTH, Block, loss_of, mesh_of, sharded, train
from thinwire import Strategy
from thinwire.engine.shards import local_of
from thinwire.errors import AttachError, DisagreementError, RankLostError
from thinwire.how import two_shot
from thinwire.on import deltas
from thinwire.what import feedback, uniform
from thinwire.when import every

EIGHT_BITS = Strategy(what=feedback(uniform(8)), how=two_shot())


class Pair(nn.Module):
    """Two outputs, either of which backward may reach first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x), self.b(x)


class Several(nn.Module):
    """A module of two outputs, and a block that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pair, self.block, self.head = Pair(), Block(), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.pair(x)
        logits: Tensor = self.head(self.block(self.block(torch.tanh(a) + torch.sin(b))))
        return logits


def _several(mesh: Any) -> Any:
    model = Several()
    for module in (model.pair, model.block, model.head, model):
        fully_shard(module, mesh=mesh)
    return model


def _gradients(rank: int, kind: str, strategy: Strategy, synced: list[bool]) -> list[Tensor]:
    """Native and ours: `.grad` after passes without zeroing, some of them without messages."""
    made, mesh = [], mesh_of(2, 2)
    build = _several if kind == "several" else sharded
    for ours in (False, True):
        model: Any = build(mesh["shard"] if ours else mesh)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        if ours:
            thinwire.attach(model, optimizer, strategy, bucket_bytes=BYTES)
        for step, sync in enumerate(synced):
            model.set_requires_gradient_sync(sync)
            loss_of(model, step, rank).backward()
        made.append(torch.cat([local_of(p.grad).reshape(-1) for p in model.parameters()]))
    return made


@pytest.mark.parametrize(
    ("kind", "strategy", "synced"),
    [
        ("several", EIGHT_BITS, [True, True]),
        pytest.param("several", Strategy(), [True, True], marks=pytest.mark.long),
        pytest.param("plain", EIGHT_BITS, [True, False], marks=pytest.mark.long),
        pytest.param("plain", EIGHT_BITS, [True, False, True], marks=pytest.mark.long),
        pytest.param("several", EIGHT_BITS, [True, False, True], marks=pytest.mark.long),
    ],
)
def test_a_landed_mean_is_kept_and_not_sent_again(
    kind: str, strategy: Strategy, synced: list[bool]
) -> None:
    for theirs, ours in run_ranks(4, _gradients, kind, strategy, synced):
        assert bool(theirs.ne(0).any())
        assert float((theirs - ours).abs().max()) < 0.01 * float(theirs.abs().max())


def _tensor_parallel(rank: int, strategy: Strategy) -> tuple[Tensor, Tensor, int]:
    """A replicated parameter beside shards, on both ranks of a replica."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "tp"))
    plan: Any = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    model: Any = parallelize_module(mlp(depth=2), mesh["tp"], plan)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sync = thinwire.attach(model, optimizer, strategy)
    for step in range(12):
        loss_of(model, step, rank // 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    held = [local_of(param).clone() for param in (model[2].bias, model[0].weight)]
    count = len(sync.buckets)
    sync.close()
    return held[0], held[1], count


@pytest.mark.parametrize(
    "strategy",
    [
        EIGHT_BITS,
        pytest.param(Strategy(every(3), uniform(4), two_shot(), deltas()), marks=pytest.mark.long),
    ],
)
def test_what_a_replica_holds_whole_stays_equal_in_it(strategy: Strategy) -> None:
    made = run_ranks(4, _tensor_parallel, strategy)
    for bias, weight, buckets in made:
        assert buckets >= 2
        assert torch.equal(bias, made[0][0])
        assert weight.shape == made[0][1].shape
    assert torch.equal(made[0][1], made[2][1])
    assert not torch.equal(made[0][1], made[1][1])


def _differing(rank: int) -> list[str]:
    """What ranks of one replica, or one rank alone, hold otherwise."""
    mesh, texts = mesh_of(2, 2), []
    odd = [
        {"strategy": Strategy(what=uniform(8 if rank % 2 else 4), how=two_shot())},
        {"nonfinite": "skip" if rank % 2 else "raise"},
        {"buffers": "local" if rank == 3 else "broadcast"},
    ]
    for options in odd:
        model: Any = sharded(mesh["shard"])
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with pytest.raises(DisagreementError) as error:
            thinwire.attach(model, optimizer, timeout=timedelta(seconds=20), **options)  # type: ignore[arg-type]
        texts.append(str(error.value))
    return texts


def test_ranks_that_attach_otherwise_all_hear_it() -> None:
    for first, second, third in run_ranks(4, _differing):
        assert "strategy differs" in first
        assert "nonfinite differs" in second
        assert "buffers differs" in third


def _flipped(rank: int, every_steps: int | None) -> str:
    model: Any = sharded(mesh_of(2, 2)["shard"])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sync = thinwire.attach(model, optimizer, check_every=every_steps, timeout=timedelta(seconds=20))
    train(model, optimizer, rank, range(1))
    if rank == 3:
        local_of(model.head.bias).add_(1.0)

    def look() -> None:
        sync.check() if every_steps is None else train(model, optimizer, rank, range(1, 5))

    with pytest.raises(DisagreementError) as error:
        look()
    return str(error.value)


@pytest.mark.parametrize("every_steps", [None, pytest.param(2, marks=pytest.mark.long)])
def test_a_shard_that_differs_is_named_on_all_ranks(every_steps: int | None) -> None:
    for text in run_ranks(4, _flipped, every_steps):
        assert "'head.bias' differs" in text


def _replaced(rank: int) -> str:
    model: Any = sharded(mesh_of(2, 2)["shard"])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    thinwire.attach(model, optimizer)
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    loss_of(model, 0, rank).backward()
    with pytest.raises(AttachError) as error:
        optimizer.step()
    return str(error.value)


@pytest.mark.long
def test_parameters_that_are_replaced_are_named_as_such() -> None:
    for text in run_ranks(4, _replaced):
        assert "was replaced after attach" in text


def _ends(rank: int) -> str:
    model: Any = sharded(mesh_of(2, 2)["shard"])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sync = thinwire.attach(model, optimizer, source="manual", timeout=timedelta(seconds=10))
    loss_of(model, 0, rank).backward()
    if rank == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if rank != 1:  # of the same shard: the others would wait for FSDP alone
        return ""
    with pytest.raises(RankLostError) as error:
        sync.reduce()
    return str(error.value)


@pytest.mark.long
def test_ranks_in_a_message_are_told_apart_from_global_ones() -> None:
    made = run_ranks(4, _ends)
    assert made[3] == -signal.SIGKILL
    assert "Rank r is the r-th of [1, 3]" in made[1]
