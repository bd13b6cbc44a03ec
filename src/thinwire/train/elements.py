"""Name what a checkpoint has of the model and the optimiser, whole or by shards, and read it back.

    model.NAME, optimizer.KEY.NAME                  a whole tensor
    model[LOW:HIGH].NAME, optimizer[LOW:HIGH].…     these elements of it, flat, of a shard

A shard is saved once, though every replica holds it. A state goes from any number of shards to any
other, and to ranks that hold the whole model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from thinwire.engine.shards import is_sharded, local_of, offset_of
from thinwire.errors import CheckpointError

_OWN = re.compile(r"(?P<kind>model|optimizer)(\[(?P<low>\d+):(?P<high>\d+)\])?\.(?P<name>.+)")
_SYNC = re.compile(r"sync\.(.*\|)?(?P<low>\d+):(?P<high>\d+)\|(?P<name>[^|]+)")
Runs = list[tuple[int, int, Tensor]]
"""Elements low to high of a tensor, and their values."""


def saved(kind: str, name: str, value: Any) -> tuple[str, Tensor]:
    """Return the key and a copy of a tensor, or of this rank's shard of it.

    Example:
        >>> saved("optimizer", "exp_avg.head", torch.ones(2))
        ('optimizer.exp_avg.head', tensor([1., 1.]))
    """
    local = local_of(value).cpu().clone()
    if not is_sharded(value):
        return f"{kind}.{name}", local
    low = offset_of(value) or 0
    return f"{kind}[{low}:{low + local.numel()}].{name}", local.flatten()


def needed_by(model: nn.Module) -> Callable[[str], bool]:
    """Return whether a rank needs the tensor of a key: not the elements of others' shards alone."""
    own = {
        name: _span(value)
        for name, value in (*model.state_dict().items(), *model.named_parameters())
        if is_sharded(value)
    }

    def needs(key: str) -> bool:
        match = _OWN.fullmatch(key) or _SYNC.fullmatch(key)
        if match is None or match["low"] is None:
            return True
        name = match["name"]
        if match["name"] not in own and key.startswith("optimizer"):
            name = name.partition(".")[2]
        low, high = own.get(name, (0, 1 << 63))
        return int(match["low"]) < high and low < int(match["high"])

    return needs


def runs_of(kind: str, state: Mapping[str, Tensor]) -> dict[str, Runs]:
    """Return what a state has of the model or the optimiser, by name."""
    out: dict[str, Runs] = {}
    for key, value in state.items():
        match = _OWN.fullmatch(key)
        if match is not None and match["kind"] == kind:
            low, high = int(match["low"] or 0), int(match["high"] or value.numel())
            out.setdefault(match["name"], []).append((low, high, value))
    return out


def filled(runs: Runs, like: Any, name: str) -> Tensor:
    """Return the values of a tensor, or of this rank's shard of it, in its shape.

    Args:
        runs: what was saved of it.
        like: the tensor.
        name: how it is called where elements are missing.

    Raises:
        CheckpointError: some of its elements were not saved, or another shape was.
    """
    first, end = _span(like)
    local = local_of(like)
    for low, _, value in runs:
        if value.shape == local.shape and (low, value.numel()) == (first, end - first):
            return value
    if max((high for _, high, _ in runs), default=0) > like.numel():
        raise CheckpointError(f"{name!r} was saved with more elements than it has")
    out = torch.empty(end - first, dtype=runs[0][2].dtype if runs else like.dtype)
    missing = torch.ones(end - first, dtype=torch.bool)
    for low, high, value in runs:
        a, b = max(low, first), min(high, end)
        if a < b:
            out[a - first : b - first] = value.flatten()[a - low : b - low]
            missing[a - first : b - first] = False
    if missing.any():
        raise CheckpointError(f"elements of {name!r} are missing: not all shards are in reach")
    return out.view(local.shape)


def _span(value: Any) -> tuple[int, int]:
    """Return the elements of the whole tensor that this rank has."""
    low = offset_of(value) or 0
    return low, low + local_of(value).numel()
