"""Small models in FSDP2, and a loop over them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from tests.shards import whole_of
from thinwire.core import Coder, Spec
from thinwire.models.gpt import GPT, GPTConfig

SIZES = (6, 7, 6, 5)  # rows that no world of 2, 3 or 4 ranks divides alike


def shard(model: nn.Sequential, **options: Any) -> nn.Sequential:
    """Shard each layer that has parameters, then the whole."""
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, **options)
    return fully_shard(model, **options)


def mlp(**options: Any) -> nn.Sequential:
    """A sharded model of uneven rows."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(SIZES):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return shard(nn.Sequential(*layers[:-1]), **options)


def gpt(context: int = 32, layers: int = 2, width: int = 32, **options: Any) -> GPT:
    """A sharded GPT over bytes.

    Its weights start with a deviation of 0.1. At GPT-2's 0.02 so narrow a model stays for long at
    the loss of single bytes, and seeds that are all dense end up to 8 % apart; here 0.1 %.
    """
    torch.manual_seed(0)
    model = GPT(GPTConfig(context=context, layers=layers, heads=2, width=width))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5 if weight.dim() > 1 else 1)
    for block in model.blocks:
        fully_shard(block, **options)
    return fully_shard(model, **options)


def train(
    model: nn.Module,
    rank: int,
    steps: int = 3,
    passes: int = 1,
) -> Tensor:
    """A loop with accumulation and clipping; returns all weights, whole."""
    assert isinstance(model, FSDPModule)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for step in range(steps):
        for micro in range(passes):
            model.set_requires_gradient_sync(micro == passes - 1)
            draws = torch.Generator().manual_seed(1000 * step + 10 * micro + rank)
            x = torch.randn(4, SIZES[0], generator=draws)
            model(x).float().square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return whole_of(model)


def shard_sizes(model: nn.Module) -> list[int]:
    """Values in a rank's shard of each module, with FSDP's padding."""
    return [
        sum(param.padded_sharded_param_size.numel() for param in group.fsdp_params)
        for module in model.modules()
        if isinstance(module, FSDPModule)
        for group in module._get_fsdp_state()._fsdp_param_groups
    ]


def payload(codec: Coder, numel: int, dtype: torch.dtype = torch.float32) -> int:
    nbytes = codec.nbytes(Spec((), 0, numel, dtype))
    assert nbytes is not None
    return nbytes
