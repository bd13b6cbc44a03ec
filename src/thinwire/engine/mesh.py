"""Find the process groups of a device mesh: of the replicas, and of the shards of each."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import nn

from thinwire.engine.shards import is_sharded
from thinwire.errors import AttachError


def replicate_group(model: nn.Module, mesh: Any, mesh_dim: str) -> Any:
    """Return the process group of the ranks that hold the same shards of other replicas.

    Args:
        model: may be sharded.
        mesh: the `DeviceMesh` with that dimension; `None` is the one that the parameters name.
        mesh_dim: the dimension over which there are replicas.

    Raises:
        AttachError: the mesh has no such dimension, or the parameters lie on it already.
    """
    meshes = _meshes(model)
    # 1. Whoever shards over this dimension, too, synchronises it by himself.
    for each in meshes:
        if mesh_dim in (each.mesh_dim_names or ()):
            raise AttachError(
                f"the parameters lie on the mesh {each.mesh_dim_names}, with {mesh_dim!r} in it, "
                "so that dimension is synchronised already. Shard over the others alone, such as "
                "fully_shard(module, mesh=mesh['shard'])"
            )
    # 2. The dimension, in the mesh that was given or that all others are a part of.
    root = mesh if mesh is not None else meshes[0]._get_root_mesh()
    names = root.mesh_dim_names or ()
    if mesh_dim not in names:
        raise AttachError(
            f"the mesh has the dimensions {names}, and none is {mesh_dim!r}, over which there "
            "would be replicas to synchronise. Make it init_device_mesh(device, (replicas, "
            "shards), mesh_dim_names=('replicate', 'shard')) and shard over mesh['shard']; or "
            "give attach mesh= and mesh_dim="
        )
    return root[mesh_dim].get_group() if len(names) > 1 else root.get_group()


def shard_groups(model: nn.Module) -> list[Any]:
    """Return the process groups of the ranks that hold a replica together, one for each dimension
    of the meshes of its parameters."""
    groups: dict[tuple[int, ...], Any] = {}
    for mesh in _meshes(model):
        for dim in range(mesh.ndim):
            if mesh.size(dim) > 1:
                group = mesh.get_group(dim)
                groups[tuple(dist.get_process_group_ranks(group))] = group
    return list(groups.values())


def _meshes(model: nn.Module) -> list[Any]:
    """List the meshes of a model's sharded parameters, each once."""
    params: list[Any] = [param for param in model.parameters() if is_sharded(param)]
    return list(dict.fromkeys(param.device_mesh for param in params))
