"""See this rank's shard of a sharded parameter, which is a DTensor, as a plain tensor."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from thinwire.core import Codec

TORCH = "2.13"
"""The version of torch with which shards were tried."""


def is_sharded(tensor: Any) -> bool:
    """Return whether a tensor is a DTensor, of which this rank has a part."""
    return hasattr(tensor, "placements")


def local_of(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a DTensor, or a plain tensor as it is, without its graph.

    Example:
        >>> local_of(torch.ones(2, requires_grad=True))
        tensor([1., 1.])
    """
    local: Tensor = getattr(tensor, "_local_tensor", tensor)
    return local.detach()


def whole_of(tensor: Any) -> Tensor:
    """Return the whole of a DTensor, or a plain tensor as it is; every rank that has a part calls
    it alike."""
    whole: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return whole


def like(param: Any, local: Tensor) -> Tensor:
    """Return values of a parameter's shard in the form that its `.grad` takes."""
    if not is_sharded(param):
        return local
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local,
        param.device_mesh,
        param.placements,
        run_check=False,
        shape=param.shape,
        stride=param.stride(),
    )


def offset_of(param: Any) -> int | None:
    """Return the element of the whole parameter at which this rank's shard begins.

    `None` where the shard is no run of whole rows.
    """
    if not is_sharded(param):
        return 0
    kinds = [type(placement).__name__ for placement in param.placements]
    if any(kind not in ("Shard", "Replicate") for kind in kinds):
        return None
    if all(kind == "Replicate" for kind in kinds):
        return 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, begin = compute_local_shape_and_global_offset(
        param.shape, param.device_mesh, param.placements
    )
    if tuple(shape[1:]) != tuple(param.shape[1:]):
        return None
    return int(begin[0]) * int(torch.Size(param.shape[1:]).numel())


def cut_over(param: Any) -> tuple[str, ...]:
    """Return the dimensions of its mesh over which a parameter is cut; over others ranks hold
    copies. Of a plain tensor there are copies alone.

    Example:
        >>> cut_over(torch.ones(2))
        ()
    """
    if not is_sharded(param):
        return ()
    names = param.device_mesh.mesh_dim_names or range(param.device_mesh.ndim)
    placed = zip(names, param.placements, strict=True)
    return tuple(str(name) for name, each in placed if type(each).__name__ != "Replicate")


def rows_of(param: Any) -> str:
    """Describe which part of a parameter this rank has; "" for all of it."""
    if not is_sharded(param):
        return ""
    placed = ", ".join(map(repr, param.placements))
    return f"{placed}: {tuple(local_of(param).shape)} at {offset_of(param)}"


def warn_of_rows(what: Codec, shards: int) -> None:
    """Warn where a codec looks at whole parameters, and sees rows of them."""
    if shards > 1 and what.traits.grain in ("part", "bucket"):
        warnings.warn(
            f"{what!r} looks at whole parameters, and each rank has one of {shards} shards, which "
            "are some of their rows: that is another method than on a model that is not sharded",
            stacklevel=4,
        )


def fsdp_modules(model: nn.Module) -> list[Any]:
    """List the modules of a model to which `fully_shard` was applied."""
    return [module for module in model.modules() if hasattr(module, "_get_fsdp_state")]


def moved_names(model: nn.Module) -> list[str]:
    """List what this version of torch lacks of the names by which shards are found."""
    states = [module._get_fsdp_state() for module in fsdp_modules(model)]
    params: list[Any] = [param for param in model.parameters() if is_sharded(param)]
    needed = [
        *((state, "_fsdp_param_groups") for state in states),
        *((param, "_local_tensor") for param in params),
        *((param.device_mesh, "_get_root_mesh") for param in params),
    ]
    groups = [group for state in states for group in getattr(state, "_fsdp_param_groups", [])]
    needed += [(group, name) for group in groups for name in ("mesh_info", "offload_policy")]
    return list(dict.fromkeys(name for held, name in needed if not hasattr(held, name)))


def reshard(modules: list[Any]) -> None:
    """Let the parameters be shards again where a forward pass has left them whole: what is written
    into shards would not reach the whole ones."""
    for module in modules:
        module.reshard()
