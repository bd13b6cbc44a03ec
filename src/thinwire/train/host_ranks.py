"""Exchange what the ranks of one host need for a checkpoint: groups, sizes, and bytes as JSON.

Nothing is unpickled, and every wait ends at the timeout of the group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from thinwire.errors import CheckpointError

MOST_BYTES = 1 << 30
"""The most that one rank may send for a save: a name and a hash of each tensor."""


def sizes_from(inventory: Any) -> dict[str, int]:
    if not isinstance(inventory, dict) or not all(
        type(size) is int and size >= 0 for size in inventory.values()
    ):
        raise ValueError("no sizes by name")
    return inventory


def assigned(sizes: Sequence[Mapping[str, int]]) -> list[list[str]]:
    """Choose which rank writes each tensor, among those that hold it, so that all write about as
    much.

    Args:
        sizes: bytes of each tensor, by rank.

    Example:
        >>> assigned([{"model": 8, "mine": 6}, {"model": 8, "yours": 1}])
        [['mine'], ['yours', 'model']]
    """
    # Tensors with the fewest holders first, large ones before small: the free choices come last,
    # when they can still even out the load. The order is the same on every rank, so it needs no
    # message.
    holders: dict[str, list[int]] = {}
    for rank, held in enumerate(sizes):
        for name in held:
            holders.setdefault(name, []).append(rank)
    out: list[list[str]] = [[] for _ in sizes]
    load = [0] * len(sizes)
    for name in sorted(
        holders, key=lambda name: (len(holders[name]), -sizes[holders[name][0]][name], name)
    ):
        writer = min(holders[name], key=lambda rank: (load[rank], rank))
        load[writer] += sizes[writer][name]
        out[writer].append(name)
    return out


def all_gather(group: Any, payload: bytes) -> list[bytes]:
    """Return the bytes of every rank, by rank in the group. Nothing is unpickled, unlike in torch's
    `all_gather_object`.

    Raises:
        CheckpointError: a rank announces more than any save needs.
    """
    # 1. Lengths, checked before any memory is allocated for what another rank announces.
    world = dist.get_world_size(group)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(world)]
    dist.all_gather(lengths, torch.tensor([len(payload)]), group=group)
    counts = [int(length) for length in lengths]
    if not all(0 <= count <= MOST_BYTES for count in counts):
        raise CheckpointError(
            f"a rank of this host announces {max(counts, key=abs):,} bytes for a save"
        )
    # 2. The bytes, all padded to the longest, since all_gather needs equal shapes.
    padded = torch.zeros(max(counts), dtype=torch.uint8)
    padded[: len(payload)] = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
    everyone = [torch.zeros_like(padded) for _ in range(world)]
    dist.all_gather(everyone, padded, group=group)
    return [each.numpy().tobytes()[:count] for each, count in zip(everyone, counts, strict=True)]


def host_groups(hosts: Iterable[int], timeout: Any) -> Any:
    """Make a gloo group for the ranks of each host and return this rank's. All ranks call it
    alike."""
    by_host: dict[int, list[int]] = {}
    for rank, host in enumerate(hosts):
        by_host.setdefault(host, []).append(rank)
    mine = None
    for members in by_host.values():
        made = dist.new_group(members, backend="gloo", timeout=timeout)
        if dist.get_rank() in members:
            mine = made
    return mine
