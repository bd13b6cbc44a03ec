"""The usual recipe for a small language model: AdamW, decay on matrices only, a linear warm-up and a cosine down to a share of the peak.

Where the strategy itself makes the update (`momentum()`, signs), a plain SGD with the same rates and decay.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from thinwire.strategy import Strategy


def adamw(model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW; matrices decay by `weight_decay`, vectors (norms, biases) do not."""
    return torch.optim.AdamW(_groups(model, weight_decay), lr=lr, betas=betas)


def optimizer_for(
    strategy: Strategy, model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW | torch.optim.SGD:
    """What applies what the strategy puts in `.grad`: AdamW for gradients; for whole updates SGD, whose decay is then AdamW's."""
    if strategy.on.updates:
        return torch.optim.SGD(_groups(model, weight_decay), lr=lr)
    return adamw(model, lr, betas, weight_decay)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trained = [param for param in model.parameters() if param.requires_grad]
    return [
        {"params": [param for param in trained if param.dim() >= 2], "weight_decay": weight_decay},
        {"params": [param for param in trained if param.dim() < 2], "weight_decay": 0.0},
    ]


def rate(step: int, steps: int, peak: float, warmup: int = 60, decay_to: float = 0.1) -> float:
    """The learning rate of `step`, from 0: up to `peak` in `warmup` steps (at most a quarter of the run), then a cosine to peak · decay_to.

    Example:
        >>> [round(rate(step, steps=960, peak=1.0), 3) for step in (0, 59, 509, 959)]
        [0.017, 1.0, 0.55, 0.1]
    """
    rising = min(warmup, max(1, steps // 4))
    if step < rising:
        return peak * (step + 1) / rising
    gone = (step + 1 - rising) / max(1, steps - rising)
    return peak * (decay_to + (1 - decay_to) * (1 + math.cos(math.pi * gone)) / 2)
