"""Small models and data that tests train: the same on every rank from a seed, other data for each
rank."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn

import thinwire
from thinwire import Strategy
from thinwire.core import Driver

WIDTH, CLASSES = 24, 5
DRAWING = threading.Lock()  # ranks that are threads have one generator between them


def mlp(
    seed: int = 0, depth: int = 3, bias: bool = True, dtype: torch.dtype = torch.float32
) -> nn.Sequential:
    with DRAWING:
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for _ in range(depth - 1):
            layers += [nn.Linear(WIDTH, WIDTH, bias=bias), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES, bias=bias)).to(dtype)


def batch(
    step: int, rank: int, size: int = 8, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(size, WIDTH, generator=draws).to(dtype), torch.randint(
        0, CLASSES, (size,), generator=draws
    )


def loss_of(model: nn.Module, step: int, rank: int, size: int = 8) -> Tensor:
    x, y = batch(step, rank, size, next(model.parameters()).dtype)
    return nn.functional.cross_entropy(model(x), y)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rank: int,
    steps: range,
    passes: int = 1,
    each: Callable[[int], None] | None = None,
) -> None:
    """The user's loop: `passes` backward passes a step, clipping, a step of the optimiser."""
    for step in steps:
        for micro in range(passes):
            loss_of(model, step * passes + micro, rank).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if each is not None:
            each(step)


def weights_of(model: nn.Module) -> Tensor:
    return torch.cat([param.detach().reshape(-1) for param in model.parameters()])


def noise(*shape: int, key: int) -> Tensor:
    """Standard normal draws in float64, the same for the same key."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64)


def near(a: Tensor, b: Tensor, most: float = 1e-12) -> bool:
    return bool((a - b).abs().max() <= most)


def sgd_of(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)


def built(
    strategy: Strategy, driver: Driver, **settings: object
) -> tuple[nn.Module, torch.optim.Optimizer, thinwire.Syncer]:
    """A float64 model, its optimiser, and a syncer on them."""
    model = mlp(dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return model, optimizer, thinwire.attach(model, optimizer, strategy, driver=driver, **settings)  # type: ignore[arg-type]


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(6), nn.Linear(6, 2)
