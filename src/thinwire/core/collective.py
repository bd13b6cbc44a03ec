"""Carry out collectives as flights: generators of hops that return a result to the caller.

A route carries the packets of a codec. All else that ranks exchange (facts at attach, hashes,
weights, votes, times, activations) goes by one of these. Each one is written from one rank's side,
moves bytes and knows neither a network nor a clock:

    all_reduce      every rank's numbers, summed by the transport
    all_gather      every rank's bytes, on every rank
    all_gather_alike  the same by a tree, where equal bytes travel once (`core/alike.py`)
    all_to_all      other bytes for each rank
    combine         every rank's bytes, folded by an operation that does not mind repeats
    send, receive   bytes from one rank to one other
    broadcast       one rank's bytes to all (in `core/broadcast.py`, as it chooses its way)

Sizes that the receiver does not know travel first, in 8 bytes a message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from thinwire.core.codec import Outcome
from thinwire.core.route import AllReduce, Exchange, Flight
from thinwire.core.spec import RankContext
from thinwire.errors import PayloadError

LENGTH_BYTES = 8
MAX_BYTES = 1 << 32
"""The most bytes that a rank may announce, unless the caller gives another limit."""


def all_reduce(tensor: Tensor, ctx: RankContext) -> Flight[Tensor]:
    """Sum a tensor of numbers over the group, in place, by the transport's own all-reduce.

    Returns:
        `tensor`, with the sum in it.

    Example:
        >>> from thinwire.drive.local import run
        >>> contexts = [RankContext(rank, (0, 1, 2), 0, 0) for rank in range(3)]
        >>> run({ctx.rank: all_reduce(torch.tensor([1.0 + ctx.rank]), ctx) for ctx in contexts})[0]
        tensor([6.])
    """
    if ctx.world > 1:
        yield AllReduce(tensor, ctx.group)
    return tensor


def all_gather(
    own: Tensor, ctx: RankContext, *, same_size: bool = False, max_bytes: int = MAX_BYTES
) -> Flight[list[Tensor]]:
    """Give every rank's bytes to every rank.

    Args:
        own: (nbytes,) uint8, this rank's bytes.
        ctx: who takes part.
        same_size: every rank's bytes have the length of `own`, so no length travels.
        max_bytes: the most bytes that a rank may announce.

    Returns:
        The bytes of each rank, in the order of `ctx.group`, on the device of `own`.

    Raises:
        PayloadError: a rank announces more than `max_bytes`.

    Example:
        >>> from thinwire.drive.local import run
        >>> contexts = [RankContext(rank, (0, 1), 0, 0) for rank in range(2)]
        >>> own = [torch.tensor([7], dtype=torch.uint8), torch.tensor([8, 9], dtype=torch.uint8)]
        >>> gathered = run({ctx.rank: all_gather(own[ctx.rank], ctx) for ctx in contexts})
        >>> [each.tolist() for each in gathered[0]]
        [[7], [8, 9]]
    """
    nbytes = dict.fromkeys(ctx.others, own.numel()) if same_size else None
    received = yield from all_to_all(
        dict.fromkeys(ctx.others, own), ctx, nbytes=nbytes, max_bytes=max_bytes
    )
    received[ctx.rank] = own
    return [received[rank] for rank in ctx.group]


def all_to_all(
    send: Mapping[int, Tensor],
    ctx: RankContext,
    *,
    nbytes: Mapping[int, int] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Flight[dict[int, Tensor]]:
    """Send each rank its own bytes and receive what each rank has for this one.

    Args:
        send: {rank: (nbytes,) uint8}. With `nbytes` it may leave ranks out. Else every other rank
            is in it, with an empty tensor where there is nothing for it.
        ctx: who takes part.
        nbytes: {rank: the bytes that come from it}, where the receiver knows them; a rank that is
            left out sends nothing. `None`: lengths travel first.
        max_bytes: the most bytes that a rank may announce.

    Returns:
        {rank: its bytes}, and under this rank's own number what it has for itself.

    Raises:
        PayloadError: a rank announces more than `max_bytes`.
        ValueError: without `nbytes`, `send` leaves a rank out.
    """
    sending = tuple((rank, send[rank]) for rank in ctx.others if rank in send)
    # 1. Lengths, where the receiver does not know them
    if nbytes is None:
        if len(sending) < len(ctx.others):
            missing = sorted(set(ctx.others).difference(send))
            raise ValueError(
                f"all_to_all: nothing for ranks {missing}, which wait for a length: give them an "
                "empty tensor, or give nbytes="
            )
        nbytes = yield from _lengths(sending, ctx, max_bytes)
    # 2. The bytes. Both sides go round the group in opposite senses, so that no rank is the first
    #    receiver of all others
    receiving = tuple((rank, nbytes[rank]) for rank in reversed(ctx.others) if rank in nbytes)
    received: dict[int, Tensor] = {}
    if sending or receiving:
        received = dict((yield Exchange(sending, receiving)))
    if ctx.rank in send:
        received[ctx.rank] = send[ctx.rank]
    return received


def combine(
    own: Tensor, ctx: RankContext, join: Callable[[Tensor, Tensor], Tensor]
) -> Flight[Tensor]:
    """Fold every rank's bytes into one value in ceil(log2 K) exchanges, whatever the number K of
    ranks.

    After round r each rank holds what 2^(r+1) ranks have: its own and that of the ranks before it.
    Where K is no power of two some ranks are counted twice, so `join` must not mind repeats: a
    bitwise OR, a maximum, a minimum.

    Args:
        own: (nbytes,) uint8, as long on every rank.
        ctx: who takes part.
        join: an operation on two tensors of bytes that is associative, commutative and idempotent.

    Example:
        >>> from thinwire.drive.local import run
        >>> contexts = [RankContext(rank, (0, 1, 2), 0, 0) for rank in range(3)]
        >>> own = [torch.tensor([1 << rank], dtype=torch.uint8) for rank in range(3)]
        >>> run({s.rank: combine(own[s.rank], s, torch.bitwise_or) for s in contexts})[1].item()
        7
    """
    # Recursive doubling: the distance to the partner doubles, and so does the number of ranks whose
    # values each rank has.
    distance = 1
    while distance < ctx.world:
        target = ctx.group[(ctx.group_rank + distance) % ctx.world]
        source = ctx.group[(ctx.group_rank - distance) % ctx.world]
        received = yield Exchange(((target, own),), ((source, own.numel()),))
        own = join(own, received[source].to(own.device))
        distance *= 2
    return own


def send(payload: Tensor, target: int, *, size_known: bool = False) -> Flight[None]:
    """Send bytes to one rank, which calls `receive`.

    Args:
        payload: (nbytes,) uint8.
        target: the receiver's rank.
        size_known: the receiver gives `nbytes`, so no length travels.
    """
    if not size_known:
        yield Exchange(((target, _length(payload)),), ())
    if payload.numel():
        yield Exchange(((target, payload),), ())


def receive(
    source: int,
    device: torch.device,
    *,
    nbytes: int | None = None,
    max_bytes: int = MAX_BYTES,
) -> Flight[Tensor]:
    """Receive the bytes that one rank sends with `send`.

    Args:
        source: the sender's rank.
        device: where the bytes are wanted.
        nbytes: how many come; `None`: the sender announces it.
        max_bytes: the most bytes that the sender may announce.

    Raises:
        PayloadError: the sender announces more than `max_bytes`.

    Example:
        >>> from thinwire.drive.local import run
        >>> payload = torch.tensor([5, 6], dtype=torch.uint8)
        >>> run({0: send(payload, 1), 1: receive(0, payload.device)})[1].tolist()
        [5, 6]
    """
    if nbytes is None:
        received = yield Exchange((), ((source, LENGTH_BYTES),))
        nbytes = _announced(source, received[source], max_bytes)
    if not nbytes:
        return torch.empty(0, dtype=torch.uint8, device=device)
    received = yield Exchange((), ((source, nbytes),))
    payload: Tensor = received[source].to(device)
    return payload


def tensors_in(result: Any) -> Iterator[Tensor]:
    """List the tensors of what a flight returned: of an outcome its total, of a mapping its values.

    A driver whose wire works on a stream of its own marks them as used on the caller's stream.
    """
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, Outcome):
        yield result.total
    elif isinstance(result, Mapping):
        for value in result.values():
            yield from tensors_in(value)
    elif isinstance(result, list | tuple):
        for value in result:
            yield from tensors_in(value)


def _lengths(
    sending: tuple[tuple[int, Tensor], ...], ctx: RankContext, max_bytes: int
) -> Flight[dict[int, int]]:
    """Exchange the lengths of messages with every other rank."""
    if not sending:
        return {}
    received = yield Exchange(
        tuple((rank, _length(payload)) for rank, payload in sending),
        tuple((rank, LENGTH_BYTES) for rank in reversed(ctx.others)),
    )
    return {rank: _announced(rank, received[rank], max_bytes) for rank in ctx.others}


def _length(payload: Tensor) -> Tensor:
    return torch.tensor([payload.numel()]).view(torch.uint8).to(payload.device)


def _announced(source: int, length: Tensor, max_bytes: int) -> int:
    """Open an announced length and refuse one that would have this rank allocate too much."""
    nbytes = int(length.cpu().clone().view(torch.int64))  # a copy of its own is aligned
    if not 0 <= nbytes <= max_bytes:
        raise PayloadError(
            f"rank {source} announces a message of {nbytes} bytes where at most {max_bytes} may "
            "come: its message was damaged, or it runs other code"
        )
    return nbytes
