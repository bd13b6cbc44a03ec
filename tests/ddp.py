"""Small models in DistributedDataParallel, and a loop over them."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.engine.models import loss_of, mlp, weights_of

CAP = 256  # bytes of a bucket, so that a small model has several
VARIANTS: dict[str, dict[str, bool]] = {
    "plain": {},
    "static_graph": {"static_graph": True},
    "find_unused": {"find_unused_parameters": True},
    "as_bucket_view": {"gradient_as_bucket_view": True},
}


class Branches(nn.Module):
    """A model whose gradients come in another order than they are registered, with a parameter that
    no pass reaches, one that odd passes do not, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.last, self.odd, self.never = nn.Linear(24, 5), nn.Linear(24, 24), nn.Linear(24, 24)
        self.first, self.frozen = nn.Linear(24, 24), nn.Linear(24, 24)
        self.frozen.requires_grad_(False)
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.frozen(self.first(x)))
        self.passes += 1
        if self.passes % 2:
            x = x + torch.tanh(self.odd(x))
        out: Tensor = self.last(x)
        return out


def wrapped(
    model: nn.Module | None = None, variant: str = "plain"
) -> tuple[DistributedDataParallel, torch.optim.Optimizer]:
    """A DDP module of several buckets, and its optimiser."""
    ddp = DistributedDataParallel(model or mlp(), bucket_cap_mb=CAP / 2**20, **VARIANTS[variant])
    trained = [param for param in ddp.parameters() if param.requires_grad]
    return ddp, torch.optim.AdamW(trained, 1e-2)


def train(
    ddp: nn.Module,
    optimizer: torch.optim.Optimizer,
    rank: int,
    steps: range,
    passes: int = 1,
    zero: bool = True,
) -> Tensor:
    """A loop with accumulation and clipping; the first passes of a step are without messages."""
    for step in steps:
        for micro in range(passes):
            quiet = micro < passes - 1 and isinstance(ddp, DistributedDataParallel)
            with ddp.no_sync() if quiet else nullcontext():  # type: ignore[operator]
                loss_of(ddp, step * passes + micro, rank).backward()
        nn.utils.clip_grad_norm_(ddp.parameters(), 1.0)
        optimizer.step()
        if zero:
            optimizer.zero_grad()
    return weights_of(ddp)
