"""Decide which parameters share a bucket.

The layout is DDP's: from the last parameter to the first, a first bucket of 1 MiB at most that can
start early, then runs of `bucket_bytes`, each of one dtype. Where fragments talk by turns,
parameters are dealt to them first, so that they are of about one size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from thinwire.core import Role, Schedule
from thinwire.errors import AttachError

FIRST_BYTES = 1 << 20
COMPILED = "_orig_mod."
"""What `torch.compile` puts before the names within a module that it wraps."""
Named = tuple[str, nn.Parameter, Role]


def runs_of(model: nn.Module, bucket_bytes: int, when: Schedule) -> list[list[Named]]:
    """Return the parameters of each bucket: every parameter that trains, with as many buckets in
    each fragment of the schedule.

    Raises:
        AttachError: fewer parameters than fragments, or too few to give each of them some of each
            type.
    """
    named = _trainable(model)
    if len(named) < when.fragments:
        raise AttachError(
            f"{when!r} wants {when.fragments} fragments and the model has only {len(named)} "
            "parameters that train; take fewer fragments"
        )
    if when.fragments == 1:
        return _layout(named, min(FIRST_BYTES, bucket_bytes), bucket_bytes)
    return _dealt(named, when.fragments, bucket_bytes)


def roles(model: nn.Module) -> dict[int, Role]:
    """Return each parameter's role, by id: embeddings by module, matrices by dimensions."""
    embeddings = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    }
    return {
        id(p): "embedding" if id(p) in embeddings else "matrix" if p.dim() > 1 else "vector"
        for p in model.parameters()
    }


def _trainable(model: nn.Module) -> list[Named]:
    role = roles(model)
    return [
        (plain_name(name), param, role[id(param)])
        for name, param in model.named_parameters()
        if param.requires_grad
    ]


def plain_name(name: str) -> str:
    """Return a parameter's or buffer's name without what `torch.compile` puts before it.

    Example:
        >>> plain_name("_orig_mod.layers.0._orig_mod.weight")
        'layers.0.weight'
    """
    return name.replace(COMPILED, "")


def _dealt(named: Sequence[Named], parts: int, bucket_bytes: int) -> list[list[Named]]:
    """Lay out buckets in fragments of about one size: bucket b is of fragment b mod parts.

    The largest parameter first, each goes to the fragment that has least so far, so layers, which
    are alike, are strided over all.
    """
    # 1. Deal the parameters to the fragments, largest first; ties by position, so that every rank
    #    deals alike.
    position = {name: i for i, (name, *_) in enumerate(named)}
    hands: list[list[Named]] = [[] for _ in range(parts)]
    held = [0] * parts
    for item in sorted(named, key=lambda item: (_nbytes([item]), position[item[0]]), reverse=True):
        least = held.index(min(held))
        hands[least].append(item)
        held[least] += _nbytes([item])
    # 2. Lay out each fragment's own buckets, in the model's order.
    runs = [
        _layout(sorted(hand, key=lambda item: position[item[0]]), bucket_bytes, bucket_bytes)
        for hand in hands
    ]
    # 3. Give every fragment the same number of buckets, or one more: only then is bucket b of
    #    fragment b mod parts. A bucket has one type, so no fragment can have fewer than its types.
    wanted = max(min(map(len, runs)), *(len({run[0][1].dtype for run in own}) for own in runs))
    evened = sorted((_evened(own, wanted) for own in runs), key=len, reverse=True)
    most, fewest = len(evened[0]), len(evened[-1])
    if most - fewest > 1:
        raise AttachError(
            f"a fragment of {parts} has {fewest} parameters, and another parameters of {wanted} "
            "types: take fewer fragments"
        )
    return [own[i] for i in range(most) for own in evened if i < len(own)]


def _evened(runs: list[list[Named]], wanted: int) -> list[list[Named]]:
    """Merge or split buckets until there are as many as wanted, or as there can be."""
    runs = sorted(runs, key=lambda run: str(run[0][1].dtype))
    # Merge the smallest neighbours of one type.
    while len(runs) > wanted and (
        pairs := [i for i in range(1, len(runs)) if runs[i - 1][0][1].dtype == runs[i][0][1].dtype]
    ):
        at = min(pairs, key=lambda i: _nbytes(runs[i - 1] + runs[i]))
        runs[at - 1 : at + 1] = [runs[at - 1] + runs[at]]
    # Split the largest bucket of several parameters into halves as equal as can be.
    while len(runs) < wanted and (long := [i for i, run in enumerate(runs) if len(run) > 1]):
        at = max(long, key=lambda i: _nbytes(runs[i]))
        half = min(
            range(1, len(runs[at])),
            key=lambda i: abs(_nbytes(runs[at][:i]) - _nbytes(runs[at][i:])),
        )
        runs[at : at + 1] = [runs[at][:half], runs[at][half:]]
    return runs


def _nbytes(run: Iterable[Named]) -> int:
    return sum(param.numel() * param.dtype.itemsize for _, param, _ in run)


def _layout(named: Iterable[Named], first_bytes: int, bucket_bytes: int) -> list[list[Named]]:
    """Lay out buckets as DDP does, from the last parameter, in the order in which gradients come.

    A run closes when it has reached its size, and each dtype has its own open run.
    """
    open_runs: dict[torch.dtype, list[Named]] = {}
    sizes: dict[torch.dtype, int] = {}
    limits: dict[torch.dtype, int] = {}
    closed = []
    for item in reversed(list(named)):
        dtype = item[1].dtype
        open_runs.setdefault(dtype, []).append(item)
        sizes[dtype] = sizes.get(dtype, 0) + item[1].numel() * dtype.itemsize
        if sizes[dtype] >= limits.get(dtype, first_bytes):
            closed.append(open_runs.pop(dtype))
            sizes[dtype] = 0
            # Only the first run of each dtype is small, so that it can fly early.
            limits[dtype] = bucket_bytes
    return closed + list(open_runs.values())
