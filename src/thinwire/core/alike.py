"""Gather every rank's bytes by a tree in which equal bytes travel once.

What ranks compare is the same on all of them in nearly every case. Each sending its m bytes to each
takes K (K-1) m bytes in all. Here values go up a binomial tree, each with the ranks that hold it,
and the whole comes down again: 2 (K-1) messages of m bytes in all where all ranks hold the same,
and 2 ceil(log2 K) messages one after another. Where all values differ every rank still gets all K.

    message:  for each value: its length (8 bytes), the number of runs of ranks (4), the first rank
              and the end of each run (4 and 4), the value
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import torch

from thinwire.core.collective import MAX_BYTES, receive, send
from thinwire.core.route import Flight
from thinwire.core.spec import RankContext
from thinwire.errors import PayloadError

Runs = list[tuple[int, int]]
_HEAD, _RUN = struct.Struct("<QI"), struct.Struct("<II")


def all_gather_alike(
    own: bytes, ctx: RankContext, device: torch.device, *, max_bytes: int = MAX_BYTES
) -> Flight[list[bytes]]:
    """Give every rank's bytes to every rank, equal ones once.

    Args:
        own: this rank's bytes.
        ctx: who takes part.
        device: where messages are wanted.
        max_bytes: the most bytes that a rank may announce.

    Returns:
        The bytes of each rank, in the order of `ctx.group`.

    Raises:
        PayloadError: a message is too long, or none that a rank writes.

    Example:
        >>> from thinwire.drive.local import run
        >>> contexts = [RankContext(rank, (0, 1, 2), 0, 0) for rank in range(3)]
        >>> own, cpu = [b"a", b"bc", b"a"], torch.device("cpu")
        >>> run({ctx.rank: all_gather_alike(own[ctx.rank], ctx, cpu) for ctx in contexts})[2]
        [b'a', b'bc', b'a']
    """
    rank, world, group = ctx.group_rank, ctx.world, ctx.group
    held: dict[bytes, Runs] = {own: [(rank, rank + 1)]}

    # 1. Up: rank r takes in those of r + 1, r + 2, r + 4 … below its lowest bit, and hands all on.
    bit = 1
    while bit < world and not rank & bit:
        if rank + bit < world:
            message = yield from receive(group[rank + bit], device, max_bytes=max_bytes)
            for value, runs in _read(_bytes(message), group[rank + bit], world):
                held.setdefault(value, []).extend(runs)
        bit <<= 1
    whole = _written(held)
    if rank:
        yield from send(_tensor(whole, device), group[rank - bit])
        message = yield from receive(group[rank - bit], device, max_bytes=max_bytes)
        whole = _bytes(message)

    # 2. Down the same ways, the largest part of the tree first.
    while bit > 1:
        bit >>= 1
        if rank + bit < world:
            yield from send(_tensor(whole, device), group[rank + bit])

    # 3. By rank.
    by_rank: dict[int, bytes] = {}
    for value, runs in _read(whole, group[0], world):
        for first, end in runs:
            by_rank |= dict.fromkeys(range(first, end), value)
    if len(by_rank) < world:
        raise _damaged(group[0])
    return [by_rank[each] for each in range(world)]


def _written(held: dict[bytes, Runs]) -> bytes:
    """Return values with the ranks that hold each, neighbouring runs joined."""
    text = bytearray()
    for value, runs in held.items():
        joined: Runs = []
        for first, end in sorted(runs):
            if joined and joined[-1][1] == first:
                joined[-1] = joined[-1][0], end
            else:
                joined.append((first, end))
        text += _HEAD.pack(len(value), len(joined))
        for run in joined:
            text += _RUN.pack(*run)
        text += value
    return bytes(text)


def _read(text: bytes, sender: int, world: int) -> Iterator[tuple[bytes, Runs]]:
    """Yield the values of a message and who holds each."""
    at = 0
    while at < len(text):
        try:
            length, count = _HEAD.unpack_from(text, at)
            at += _HEAD.size
            if count > world:
                raise _damaged(sender)
            runs = [_RUN.unpack_from(text, at + i * _RUN.size) for i in range(count)]
        except struct.error:
            raise _damaged(sender) from None
        at += count * _RUN.size
        if length > len(text) - at or any(not first < end <= world for first, end in runs):
            raise _damaged(sender)
        yield text[at : at + length], runs
        at += length


def _damaged(sender: int) -> PayloadError:
    return PayloadError(
        f"rank {sender} sent values with the ranks that hold them, and they cannot be read: its "
        "message was damaged, or it runs other code"
    )


def _bytes(message: torch.Tensor) -> bytes:
    return message.cpu().numpy().tobytes()


def _tensor(text: bytes, device: torch.device) -> torch.Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device)
