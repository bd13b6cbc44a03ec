"""The usual recipe for a small GPT: AdamW, decay on matrices only, a linear warm-up and a cosine down to a tenth."""

from __future__ import annotations

import math

import torch
from torch import nn

WARMUP = 60


def adamw(model: nn.Module, lr: float) -> torch.optim.AdamW:
    """AdamW with betas (0.9, 0.95); matrices decay by 0.1, vectors (norms, biases) do not."""
    trained = [param for param in model.parameters() if param.requires_grad]
    groups = [
        {"params": [param for param in trained if param.dim() >= 2], "weight_decay": 0.1},
        {"params": [param for param in trained if param.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))


def rate(step: int, steps: int, peak: float) -> float:
    """The learning rate of `step`, from 0: up to `peak` in 60 steps (a quarter of a short run), then a cosine to peak / 10 at the end.

    Example:
        >>> [round(rate(step, steps=960, peak=1.0), 3) for step in (0, 59, 509, 959)]
        [0.017, 1.0, 0.55, 0.1]
    """
    warmup = min(WARMUP, max(1, steps // 4))
    if step < warmup:
        return peak * (step + 1) / warmup
    gone = (step + 1 - warmup) / max(1, steps - warmup)
    return peak * (0.55 + 0.45 * math.cos(math.pi * gone))
