"""Small models sharded by fully_shard over one dimension of a mesh, and a loop over them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.engine.models import batch
from thinwire.engine.shards import local_of

WIDTH, CLASSES = 24, 5
BYTES = 1 << 11  # of a bucket's shards, so that a small model has several


class Block(nn.Module):
    """A residual block; of its 31 rows no number of shards above one has equal parts."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.into = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 31)
        self.out = nn.Linear(31, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.out(torch.tanh(self.into(self.norm(x))))
        return y


class Net(nn.Module):
    """Blocks and a head of 5 rows; with `odd`, a block that odd passes alone reach."""

    def __init__(self, blocks: int = 3, odd: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.head = nn.Linear(WIDTH, CLASSES)
        self.odd = Block() if odd else None
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        self.passes += 1
        if self.odd is not None and self.passes % 2:
            x = self.odd(x)
        logits: Tensor = self.head(x)
        return logits


def mesh_of(replicas: int, shards: int) -> DeviceMesh:
    return init_device_mesh("cpu", (replicas, shards), mesh_dim_names=("replicate", "shard"))


def sharded(mesh: DeviceMesh, model: nn.Module | None = None, **options: Any) -> Any:
    """The model, each block a unit of FSDP."""
    model = model or Net()
    for block in [*model.modules()]:
        if isinstance(block, Block):
            fully_shard(block, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def loss_of(model: nn.Module, step: int, rank: int) -> Tensor:
    x, y = batch(step, rank)
    return nn.functional.cross_entropy(model(x).float(), y)


def train(
    model: Any,
    optimizer: torch.optim.Optimizer,
    rank: int,
    steps: range,
    passes: int = 1,
    clip: bool = True,
    zero: bool = True,
) -> Tensor:
    """A loop with accumulation and clipping; the first passes of a step send nothing."""
    for step in steps:
        for micro in range(passes):
            model.set_requires_gradient_sync(micro == passes - 1)
            loss_of(model, step * passes + micro, rank).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if zero:
            optimizer.zero_grad()
    return shards_of(model)


def shards_of(model: nn.Module) -> Tensor:
    """This rank's shards, as one flat tensor."""
    return torch.cat([local_of(param).clone().reshape(-1) for param in model.parameters()])


def whole_of(model: nn.Module) -> Tensor:
    """The whole parameters; all ranks of a replica call it alike."""
    return torch.cat([param.full_tensor().detach().reshape(-1) for param in model.parameters()])  # type: ignore[attr-defined]
