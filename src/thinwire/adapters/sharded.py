"""Carry the two collectives of sharded training as encoded flights, in two levels.

With K ranks in nodes of L neighbouring ranks, a shard of n values and payloads of p(n) bytes:

    gather_shards     every rank's shard, on every rank
        1. encode this rank's shard, once
        2. send the payload to this rank's peers, one in each other node: K/L - 1 payloads
        3. send what came, and the own payload, to the node's other ranks: (L - 1) K/L payloads
        4. decode all K payloads, the own one too, so that all ranks hold the same bits
    reduce_shards     each rank's shard of the sum over ranks
        1. encode, for each rank l of the node, the shards of l and of its peers; send them to l
        2. decode and add what came, in float32: the node's sum of K/L shards
        3. encode those of the peers, and send each to its peer
        4. decode and add what came: the sum over all ranks
    gather_bytes      every rank's bytes, on every rank, as they are

Each rank sends (K - 1) p(n) bytes either way, and (K/L - 1) p(n) of them to other nodes. Nothing
goes to the rank itself, and its own part of a sum is not encoded. Nodes of 1 rank are one level.

Source: ZeRO++ (Wang et al. 2023, arXiv:2306.10209): the first is qwZ, the second is qgZ. It differs
from qwZ by the two levels, by which a node receives each payload once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from thinwire.core import Coder, Flight, Part, RankContext, Spec, collective
from thinwire.kernels import memory, reference


def shard_spec(name: str, owner: int, like: Tensor, numel: int) -> Spec:
    """Return the description of one rank's shard: a flat run of values without parameters' names.

    Args:
        name: of the module.
        owner: the rank whose shard it is.
        like: a tensor of the shard's dtype.
        numel: values in a shard.
    """
    return Spec((Part(f"{name}/{owner}", (numel,), 0, "vector"),), 0, numel, like.dtype)


def levels(ctx: RankContext, node_size: int) -> tuple[RankContext, RankContext]:
    """Return this rank among the ranks of its node, and among its peers in the other nodes.

    Example:
        >>> [each.group for each in levels(RankContext(2, (0, 1, 2, 3), 0, 0), 2)]
        [(2, 3), (0, 2)]
    """
    first = ctx.group_rank // node_size * node_size
    return (
        replace(ctx.child("inside"), group=ctx.group[first : first + node_size]),
        replace(ctx.child("across"), group=ctx.group[ctx.group_rank % node_size :: node_size]),
    )


def gather_shards(
    codec: Coder, own: Tensor, out: Tensor, specs: Sequence[Spec], ctx: RankContext, node_size: int
) -> Flight[Tensor]:
    """Write every rank's shard, encoded and decoded, to `out`; equal bits on every rank.

    Args:
        codec: without state, and with payloads of one size.
        own: (n,) this rank's shard; it may be its place in `out`.
        out: (K n,) the shards in the order of the group.
        specs: of each rank's shard.
    """
    inside, across = levels(ctx, node_size)
    # 1. Encode. A codec that loses nothing may hand on `own` itself, which is only read.
    payload = _encoded(codec, own, specs[ctx.group_rank], ctx)
    # 2. Between nodes.
    column = yield from collective.all_gather(payload, across, same_size=True)
    # 3. Inside the node: payloads travel on as they came.
    node = yield from collective.all_gather(memory.cat(column), inside, same_size=True)
    # 4. Decode. Row l of the node's has the payloads of rank l and its peers.
    for spec, shard, sender in zip(specs, out.chunk(ctx.world), range(ctx.world), strict=True):
        at = sender // node_size * payload.numel()
        payload_of = node[sender % node_size][at : at + payload.numel()]
        _decode_to(shard, codec, payload_of, spec, ctx, ctx.group[sender])
    return out


def gather_bytes(own: Tensor, out: Tensor, ctx: RankContext) -> Flight[Tensor]:
    """Write every rank's values to `out` (K n,), as they are; `own` (n,) may be its place there."""
    gathered = yield from collective.all_gather(reference.as_bytes(own), ctx, same_size=True)
    for shard, payload, sender in zip(out.chunk(ctx.world), gathered, ctx.group, strict=True):
        if sender != ctx.rank or shard.data_ptr() != own.data_ptr():
            shard.copy_(reference.from_bytes(payload, own.dtype))
    return out


def reduce_shards(
    codec: Coder, x: Tensor, specs: Sequence[Spec], ctx: RankContext, node_size: int
) -> Flight[Tensor]:
    """Return this rank's shard of the sum over ranks: (n,) in float32, float64 of float64.

    Args:
        codec: without state, and with payloads of one size.
        x: (K n,) this rank's contributions to the shards, in the order of the group.
        specs: of each rank's shard.
    """
    inside, across = levels(ctx, node_size)
    shards = dict(zip(ctx.group, x.chunk(ctx.world), strict=True))
    spec_of = dict(zip(ctx.group, specs, strict=True))
    # 1. To each rank of the node what it adds up: the shards of its peers, and its own. Rank l has
    #    peers in as many nodes as this one, at the same place.
    columns = {rank: ctx.group[index::node_size] for index, rank in enumerate(inside.group)}
    send = {
        rank: memory.cat(
            [_encoded(codec, shards[peer], spec_of[peer], inside) for peer in columns[rank]]
        )
        for rank in inside.others
    }
    nbytes = [codec.max_nbytes(spec_of[peer]) for peer in across.group]
    received = yield from collective.all_to_all(
        send, inside, nbytes=dict.fromkeys(inside.others, sum(nbytes))
    )
    # 2. The node's sums.
    parts = {rank: payloads.split(nbytes) for rank, payloads in received.items()}
    sums = {
        peer: _sum(
            codec,
            shards[peer],
            {rank: payloads[index] for rank, payloads in parts.items()},
            spec_of[peer],
            inside,
        )
        for index, peer in enumerate(across.group)
    }
    # 3. To each peer its own, and 4. the sum of those that come.
    received = yield from collective.all_to_all(
        {peer: _encoded(codec, sums[peer], spec_of[peer], across) for peer in across.others},
        across,
        nbytes=dict.fromkeys(across.others, nbytes[across.group_rank]),
    )
    return _sum(codec, sums[ctx.rank], received, spec_of[ctx.rank], across)


def _encoded(codec: Coder, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    """Encode a shard, or one rank's part of its sum; the codec's state holds no tensors."""
    return codec.encode(x, spec, codec.init(spec, ctx), ctx)


def _sum(
    codec: Coder, own: Tensor, payloads: Mapping[int, Tensor], spec: Spec, ctx: RankContext
) -> Tensor:
    """Add what others have sent to this rank's own part.

    In the order of a ring that ends here (the rank before this one first, the own part last), in
    which gloo adds, too.
    """
    total, state = None, codec.init(spec, ctx)
    for sender in reversed(ctx.others):
        if total is None:
            total = codec.decode(payloads[sender], spec, state, ctx, sender)
        else:
            codec.accumulate(total, payloads[sender], spec, state, ctx, sender)
    own = own.to(spec.work)
    return own.clone() if total is None else total.add_(own)


def _decode_to(
    out: Tensor, codec: Coder, payload: Tensor, spec: Spec, ctx: RankContext, sender: int
) -> None:
    """Decode a payload to `out`, at once where that has the type of sums."""
    state = codec.init(spec, ctx)
    if out.dtype == spec.work:
        codec.fill(out, payload, spec, state, ctx, sender)
    else:
        out.copy_(codec.decode(payload, spec, state, ctx, sender))
