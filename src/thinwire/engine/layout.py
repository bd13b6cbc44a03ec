"""Decide which parameters share a bucket.

The layout is DDP's: from the last parameter to the first, a first bucket of 1 MiB at most that can
start early, then runs of `bucket_bytes`, each of one kind (`_kind`). Where fragments talk by turns,
parameters are dealt to them first, so that they are of about one size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from thinwire.core import Role, Schedule
from thinwire.engine.shards import cut_over
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
            kind.
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
    #    fragment b mod parts. A bucket has one kind, so no fragment can have fewer than its kinds.
    wanted = max(min(map(len, runs)), *(len({_kind(run[0]) for run in own}) for own in runs))
    evened = sorted((_evened(own, wanted) for own in runs), key=len, reverse=True)
    most, fewest = len(evened[0]), len(evened[-1])
    if most - fewest > 1:
        raise AttachError(
            f"a fragment of {parts} has {fewest} parameters, and another parameters of {wanted} "
            "kinds: take fewer fragments"
        )
    return [own[i] for i in range(most) for own in evened if i < len(own)]


def _evened(runs: list[list[Named]], wanted: int) -> list[list[Named]]:
    """Merge or split buckets until there are as many as wanted, or as there can be."""
    runs = sorted(runs, key=lambda run: _kind(run[0]))
    # Merge the smallest neighbours of one kind.
    while len(runs) > wanted and (
        pairs := [i for i in range(1, len(runs)) if _kind(runs[i - 1][0]) == _kind(runs[i][0])]
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

    A run closes when it has reached its size, and each kind has its own open run.
    """
    open_runs: dict[str, list[Named]] = {}
    sizes: dict[str, int] = {}
    limits: dict[str, int] = {}
    closed = []
    for item in reversed(list(named)):
        kind = _kind(item)
        open_runs.setdefault(kind, []).append(item)
        sizes[kind] = sizes.get(kind, 0) + _nbytes([item])
        if sizes[kind] >= limits.get(kind, first_bytes):
            closed.append(open_runs.pop(kind))
            sizes[kind] = 0
            # Only the first run of each kind is small, so that it can fly early.
            limits[kind] = bucket_bytes
    return closed + list(open_runs.values())


def _kind(item: Named) -> str:
    """Return what all parameters of a bucket have in common: the type, and over which dimensions of
    a mesh they are cut.

    Ranks that hold copies of one parameter, beside parts of another, encode the copies alike only
    where no part is in their bucket.
    """
    return f"{item[1].dtype} {cut_over(item[1])}"
