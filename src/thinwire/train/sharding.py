"""Shard a model over ranks in a row by FSDP2, each block a unit of its own, then the rest.

Within a replica FSDP gathers the weights of one block at a time and averages gradients. The
strategy joins the replicas, on each rank's own shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from thinwire.core import Driver
from thinwire.drive.torch import TorchDriver
from thinwire.engine.agree import must_agree
from thinwire.engine.observe.meter import Meter
from thinwire.engine.shards import local_of
from thinwire.models.outline import Outline, Rows, blocks_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def everyone(shards: int, timeout: timedelta, device: torch.device) -> Iterator[Driver]:
    """Connect all ranks for the time of a run, and compare how they share out the model.

    Raises:
        DisagreementError: ranks were given other shards.
    """
    driver = TorchDriver(None, 1, timeout, device)
    try:
        must_agree(driver, Meter(driver.world), {"shards of a replica": shards}, device)
        yield driver
    except BaseException as error:
        driver.abandon(error)
        raise
    driver.close()


def shard(
    model: PreTrainedModel, outline: Outline, shards: int, device: torch.device, seed: int
) -> Any:
    """Shard an empty model over this rank's replica and fill its shards; return its mesh.

    Args:
        model: on the meta device.
        outline: has its weights.
        shards: ranks that hold a replica together.
        device: where the shards go.
        seed: of a preset's weights.

    Raises:
        ModelError: weights that cannot be read, or drawn by blocks.
    """
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # 1. Shapes: every block a unit, then what is left.
    sizes = (dist.get_world_size() // shards, shards)
    mesh = init_device_mesh(device.type, sizes, mesh_dim_names=("replicate", "shard"))
    for module in (*blocks_of(model), model):
        fully_shard(module, mesh=mesh["shard"])
    model.to_empty(device=device)
    # 2. Values: rows by the rule of FSDP2, which is that of torch.chunk.
    torch.manual_seed(seed)
    values, buffers = outline.rows(_rows_of(mesh["shard"].get_local_rank(), shards))
    with torch.no_grad():
        for name, param in model.named_parameters():
            local_of(param).copy_(values.pop(name))
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return mesh


def _rows_of(index: int, shards: int) -> Rows:
    """Return which rows of a parameter the shard of this index has.

    Example:
        >>> [_rows_of(index, 3)(4) for index in range(3)]
        [(0, 2), (2, 4), (4, 4)]
    """

    def rows(count: int) -> tuple[int, int]:
        size = -(-count // shards)
        return min(count, index * size), min(count, (index + 1) * size)

    return rows
