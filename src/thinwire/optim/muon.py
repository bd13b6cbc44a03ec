"""Join Muon for the hidden matrices of a model and AdamW for the rest, as one optimiser.

torch's Muon takes matrices only, and embeddings, heads, norms and biases are better off with AdamW
(Jordan et al. 2024, "Muon"; Liu et al. 2025, arXiv:2502.16982). `thinwire.attach` takes one
optimiser, whose steps it counts and whose state it saves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from thinwire.engine.layout import roles


class Together(Optimizer):
    """Several optimisers of different parameters that step as one: one list of groups, one state,
    one `state_dict`.

    Args:
        parts: the optimisers; no parameter may be in two of them.

    Raises:
        ValueError: a parameter is in two of them.
    """

    def __init__(self, *parts: Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._join([group for part in parts for group in part.param_groups])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._join(self.param_groups)

    def _join(self, groups: list[dict[str, Any]]) -> None:
        """Let all optimisers share groups and state, so that a rate set here is set there."""
        self.param_groups, at = list(groups), 0
        for part in self.parts:
            count = len(part.param_groups)
            part.param_groups = self.param_groups[at : at + count]
            part.state = self.state
            at += count


def muon(
    model: nn.Module,
    lr: float = 0.02,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    excluded: tuple[str, ...] = ("lm_head",),
) -> Together:
    """Return torch's Muon on the hidden matrices, at the rate that fits AdamW (`match_rms_adamw`),
    and AdamW on the rest.

    Args:
        model: the model.
        lr: the rate of both.
        weight_decay: of matrices and embeddings; vectors (norms, biases) do not decay.
        betas: AdamW's.
        excluded: parameters whose name holds one of these go to AdamW, as embeddings do; Muon is
            not for a model's head.

    Raises:
        ValueError: no parameter is left to one of the two.

    Example:
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4))
        >>> [type(part).__name__ for part in muon(model).parts]
        ['Muon', 'AdamW']
        >>> [len(group["params"]) for group in muon(model).param_groups]
        [2, 1, 2]
    """
    # 1. Which parameters are hidden matrices.
    role = roles(model)
    named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    inside = [
        param
        for name, param in named
        if role[id(param)] == "matrix"
        and param.dim() == 2
        and not any(word in name for word in excluded)
    ]
    chosen = {id(param) for param in inside}
    rest = [param for _, param in named if id(param) not in chosen]
    if not inside or not rest:
        kind, other = ("Muon", "AdamW") if not inside else ("AdamW", "Muon")
        raise ValueError(f"no parameter is left to {kind}: use torch.optim.{other} alone")
    # 2. AdamW's groups: embeddings and heads decay, vectors do not.
    groups = [
        {"params": [param for param in rest if param.dim() >= 2], "weight_decay": weight_decay},
        {"params": [param for param in rest if param.dim() < 2], "weight_decay": 0.0},
    ]
    first = torch.optim.Muon(
        inside, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return Together(
        first, torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=betas)
    )
