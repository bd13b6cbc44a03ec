"""Step some of an optimiser's parameters, as if its whole step had been taken in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from thinwire.errors import AttachError

Settings = dict[str, Any]
"""What a parameter group is stepped by, without its parameters: its rate, betas and so on."""


def step_some(
    optimizer: Optimizer,
    step: Callable[[], Any],
    params: set[int],
    settings: Sequence[Settings],
) -> None:
    """Step some parameters of an optimiser.

    Args:
        optimizer: of these and other parameters.
        step: its own step, which goes over all of its groups.
        params: the parameters to step, by id.
        settings: of each group, those to step with; the optimiser keeps its present ones.

    Raises:
        AttachError: the step has moved a setting that all parameters of a group share.
    """
    groups = optimizer.param_groups
    # 1. give the groups these settings and these parameters alone
    before = [(group["params"], settings_of(group, copies=False)) for group in groups]
    for group, then in zip(groups, settings, strict=False):
        group.update(then)
        group["params"] = [param for param in group["params"] if id(param) in params]
    # 2. step, and look whether a setting has moved; `step` is the optimiser's own, and sees groups
    #    of a few parameters
    try:
        step()
        # A setting that a step moves would move once for every part.
        moved = [
            name
            for group, then in zip(groups, settings, strict=False)
            for name in then
            if _differs(group[name], then[name])
        ]
    # 3. put all back, also where the step raises: else the optimiser would lose its parameters
    finally:
        for group, (whole, present) in zip(groups, before, strict=True):
            group.update(present)
            group["params"] = whole
    if moved:
        raise AttachError(
            f"{type(optimizer).__name__} keeps {moved[0]!r} for all parameters of "
            "a group and moves it in each step, so "
            "they cannot be stepped a few at a time: attach with overlap='backward'"
        )


def settings_of(group: dict[str, Any], copies: bool = True) -> Settings:
    """Return a group's settings without its parameters; tensors (a rate on a device) are copied,
    since schedulers write into them."""
    return {
        name: value.clone() if copies and isinstance(value, Tensor) else value
        for name, value in group.items()
        if name != "params"
    }


def _differs(a: Any, b: Any) -> bool:
    return False if a is b else bool(torch.any(a != b)) if isinstance(a, Tensor) else bool(a != b)
