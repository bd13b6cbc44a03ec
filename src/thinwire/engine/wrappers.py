"""Find wrappers of other frameworks around a model or an optimiser, and refuse those that
synchronise it, too."""

from __future__ import annotations

import gc
import sys
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from thinwire.engine.shards import is_sharded

ADVICE = (
    "Call the bare model and wrap it in nothing; or keep DDP and use thinwire.ddp_hook(ddp, "
    "strategy), also on what Accelerate's prepare() returns. For Lightning and Hugging Face's "
    "Trainer there are callbacks: thinwire.adapters.lightning.Thinwire and thinwire.adapters.hf"
    ".Thinwire"
)

SHARDS = (
    "thinwire.attach(model, optimizer, strategy) takes a sharded model whose mesh has a replicate "
    "dimension; shard it before"
)


def around(model: nn.Module, expected: nn.Module | None = None) -> str | None:
    """Name the living data-parallel wrapper that holds the model or a part of it.

    It takes a look at every object of the process, so call it seldom.

    Args:
        expected: a wrapper that does no harm: Thinwire is its hook.
    """
    wrapper = living_wrapper(model, expected)
    return None if wrapper is None else type(wrapper).__name__


def living_wrapper(model: nn.Module, expected: nn.Module | None = None) -> nn.Module | None:
    """Return the living data-parallel wrapper that holds the model or a part of it; see `around`.

    Frameworks give their callbacks the model, and not what they have put around it.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return None  # a wrapper cannot be made without a process group
    ours = {id(module) for module in model.modules()}
    wrapper = _living_wrapper(ours, expected)
    # A wrapper that is only waiting to be collected synchronises nothing.
    if wrapper is not None:
        wrapper = None
        gc.collect()
        wrapper = _living_wrapper(ours, expected)
    return wrapper


def inside(model: nn.Module) -> list[str]:
    """Return which wrappers the model itself has: what of it attach cannot synchronise."""
    reasons = []
    # 1. The model or a module of it in a wrapper that synchronises it, too.
    wrapped = next(
        ((name, module) for name, module in model.named_modules() if isinstance(module, _kinds())),
        None,
    )
    if wrapped is not None:
        name, module = wrapped
        what = f"the model's {name!r} is" if name else "the model is"
        if isinstance(module, DistributedDataParallel):
            reasons.append(
                f"{what} wrapped in DistributedDataParallel, which averages gradients itself: "
                f"attach the bare module. {ADVICE}"
            )
        else:
            reasons.append(
                f"{what} wrapped in FullyShardedDataParallel (FSDP1), which shards parameters and "
                f"reduces gradients itself. Take "
                "fully_shard (FSDP2)"
            )
    return reasons


def no_shards(model: nn.Module) -> list[str]:
    """Return which parameters this rank has only shards of, where whole ones are needed."""
    if sharded := [name for name, param in model.named_parameters() if is_sharded(param)]:
        more = f" and {len(sharded) - 1} more" if len(sharded) > 1 else ""
        return [
            f"{sharded[0]!r}{more}: DTensors, sharded by fully_shard (FSDP2) or a device mesh, "
            f"have no place here. {SHARDS}"
        ]
    return []


def unwrapped(optimizer: Any) -> Any:
    """Return the optimiser that takes the steps: that in Accelerate's wrapper, which itself has no
    hooks.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
        >>> unwrapped(optimizer) is optimizer
        True
    """
    inner, depth = optimizer, 0
    # Wrappers may hold wrappers; the depth bounds one that holds itself.
    while (
        not hasattr(inner, "_optimizer_step_pre_hooks")
        and isinstance(getattr(inner, "optimizer", None), Optimizer)
        and depth < 8
    ):
        inner, depth = inner.optimizer, depth + 1
    return inner if hasattr(inner, "_optimizer_step_pre_hooks") else optimizer


def _kinds() -> tuple[type, ...]:
    """Return the wrapper classes that synchronise by themselves.

    FSDP's module takes long to import; where nobody has imported it, there are no such wrappers.
    """
    fsdp = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", None)
    return (DistributedDataParallel,) if fsdp is None else (DistributedDataParallel, fsdp)


def _living_wrapper(ours: set[int], expected: nn.Module | None) -> nn.Module | None:
    """Search all living objects for a wrapper that holds one of our modules.

    There are some 400,000 objects of a few thousand types, and mostly none is a wrapper: so the
    types are looked at once each.
    """
    wrappers, alive = _kinds(), gc.get_objects()
    kinds = {kind for kind in set(map(type, alive)) if issubclass(kind, wrappers)}
    if not kinds:
        return None
    for held in alive:
        if type(held) not in kinds or held is expected:
            continue
        if any(id(module) in ours for module in held.modules()):
            wrapper: nn.Module = held
            return wrapper
    return None
