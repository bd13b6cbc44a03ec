"""Make AdamW for small language models: decay on matrices only, a linear warm-up, and a cosine down
to a fraction of the peak.

Muon (for MuLoCo) or SGD can replace AdamW. Where the strategy itself makes the update
(`momentum()`, signs), a plain SGD with the same rates and decay.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from thinwire.errors import ConfigError
from thinwire.optim.muon import muon
from thinwire.strategy import Strategy


def adamw(
    model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """Return AdamW; matrices decay by `weight_decay`, vectors (norms, biases) do not.

    On a CPU it is torch's fused one, which takes one pass over each tensor in place of ten.
    """
    # On a GPU torch takes its grouped one by itself.
    fused = all(param.device.type == "cpu" for param in model.parameters()) or None
    return torch.optim.AdamW(_groups(model, weight_decay), lr=lr, betas=betas, fused=fused)


def optimizer_for(
    strategy: Strategy,
    model: nn.Module,
    name: str,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> torch.optim.Optimizer:
    """Return the optimiser of that name for what the strategy puts in `.grad`; "auto" is AdamW.

    Of a strategy that makes whole updates, a plain SGD in any case, whose decay is then AdamW's;
    else "sgd" has a momentum of `betas[0]`.

    Raises:
        ConfigError: another optimiser than SGD where the strategy makes the update, or Muon without
            a matrix inside.
    """
    must_suit(strategy, name)
    if strategy.on.updates:
        return torch.optim.SGD(_groups(model, weight_decay), lr=lr)
    if name == "sgd":
        return torch.optim.SGD(_groups(model, weight_decay), lr=lr, momentum=betas[0])
    if name == "muon":
        try:
            return muon(model, lr, weight_decay, betas)
        except ValueError as error:
            raise ConfigError(f"--optimizer muon: {error}") from error
    return adamw(model, lr, betas, weight_decay)


def must_suit(strategy: Strategy, name: str) -> None:
    """Refuse an optimiser that would transform what is already an update.

    Raises:
        ConfigError: as in `optimizer_for`.
    """
    if strategy.on.updates and name not in ("auto", "sgd"):
        raise ConfigError(
            f"--optimizer {name}: {strategy.on!r} puts whole updates in .grad, which a plain SGD "
            "applies; take auto or sgd"
        )


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trained = [param for param in model.parameters() if param.requires_grad]
    return [
        {"params": [param for param in trained if param.dim() >= 2], "weight_decay": weight_decay},
        {"params": [param for param in trained if param.dim() < 2], "weight_decay": 0.0},
    ]


def rate(step: int, steps: int, peak: float, warmup: int = 60, decay_to: float = 0.1) -> float:
    """Return the learning rate of `step`, from 0: up to `peak` in `warmup` steps (at most a quarter
    of the run), then a cosine to peak · decay_to.

    Example:
        >>> [round(rate(step, steps=960, peak=1.0), 3) for step in (0, 59, 509, 959)]
        [0.017, 1.0, 0.55, 0.1]
    """
    rising = min(warmup, max(1, steps // 4))
    if step < rising:
        return peak * (step + 1) / rising
    gone = (step + 1 - rising) / max(1, steps - rising)
    return peak * (decay_to + (1 - decay_to) * (1 + math.cos(math.pi * gone)) / 2)
