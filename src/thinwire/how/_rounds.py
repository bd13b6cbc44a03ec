"""Drive a codec's rounds, and send payloads whose size the receiver does not know after their
length."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from thinwire.core import (
    Codec,
    Coder,
    Exchange,
    Flight,
    Hop,
    Outcome,
    Packet,
    RankContext,
    Rounds,
    Spec,
    State,
    needs_input_later,
    side_by_side,
)
from thinwire.errors import PayloadError
from thinwire.kernels import memory, reference

TensorFlight: TypeAlias = Generator[Hop, Any, Tensor]
"""A part of a flight that ends in a tensor."""
Totals: TypeAlias = Generator[Hop, Any, dict[int, Tensor]]
"""A part of a flight that ends in the sum of each span."""

_LENGTH = 8


def one_span(rounds: Rounds, total: Callable[[Packet], TensorFlight]) -> Flight[Outcome]:
    """Drive one codec to its outcome; `total` answers each packet with the sum over ranks."""
    try:
        packet = next(rounds)
        while True:
            packet = rounds.send((yield from total(packet)))
    except StopIteration as stop:
        outcome: Outcome = stop.value
        return outcome


def many_spans(
    codec: Codec,
    x: Tensor,
    spans: Mapping[int, Spec],
    state: State,
    ctx: RankContext,
    totals: Callable[[dict[int, Packet]], Totals],
) -> Flight[Outcome]:
    """Drive the codec on all spans side by side to one outcome.

    Args:
        codec: encodes each span.
        x: the bucket (numel,).
        spans: of `x` by number, one behind the other.
        state: has a child for each span, by its number.
        ctx: this rank.
        totals: answers a round's packets, {span: packet}, with the sums over ranks.
    """
    # 1. One flow of the codec for each span: views of `x`, so nothing is copied.
    begin = spans[0].begin
    flows = [
        codec.rounds(x[span.begin - begin : span.end - begin], span, state.child(str(j)), ctx)
        for j, span in spans.items()
    ]
    # 2. All flows go in step: one exchange carries the packets of all spans.
    ordered = yield from side_by_side(flows, totals)
    # 3. Join the spans' outcomes; what was sent, and the mask, only when asked.
    sents = [outcome.sent for outcome in ordered if outcome.sent is not None]
    every_counted = len(sents) == len(ordered)
    sent = (lambda: torch.cat([own() for own in sents])) if every_counted else None
    mask = (
        (lambda: torch.cat([_mask_of(outcome) for outcome in ordered]))
        if any(outcome.mask for outcome in ordered)
        else None
    )
    return Outcome(joined(x, [outcome.total for outcome in ordered]), sent, mask)


def targets(codec: Codec, x: Tensor, spans: Mapping[int, Spec]) -> dict[int, Tensor]:
    """Return where the sum of each span may be written: in `x`, unless the codec needs that
    later."""
    if needs_input_later(codec):
        return {}
    begin = spans[0].begin
    return {j: x[span.begin - begin : span.end - begin] for j, span in spans.items()}


def opened(
    coder: Coder,
    payload: Tensor,
    spec: Spec,
    state: State,
    ctx: RankContext,
    sender: int,
    into: Tensor | None,
) -> Tensor:
    """Decode a payload, into a tensor where there is one that suits."""
    if into is None or into.numel() != spec.numel or into.dtype != spec.work:
        return coder.decode(payload, spec, state, ctx, sender)
    coder.fill(into, payload, spec, state, ctx, sender)
    return into


def joined(x: Tensor, totals: Sequence[Tensor]) -> Tensor:
    """Return the totals of spans, one after the other: `x` itself, where they lie there."""
    at = x.data_ptr()
    for total in totals:
        if total.data_ptr() != at or total.dtype != x.dtype:
            return memory.cat(list(totals))
        at += total.numel() * total.dtype.itemsize
    return x


def _mask_of(outcome: Outcome) -> Tensor:
    """Return which entries a span's total holds; all, where the codec sends all."""
    return (
        outcome.mask()
        if outcome.mask is not None
        else torch.ones_like(outcome.total, dtype=torch.bool)
    )


def swap(
    send: Sequence[tuple[int, Tensor, bool]],
    recv: Sequence[tuple[int, Coder, Spec]],
    device: torch.device,
) -> Generator[Hop, Any, dict[int, Tensor]]:
    """Exchange payloads: send (rank, payload, size is known there), receive (rank, coder, spec).

    Sizes that the receiver does not know go first, 8 bytes each.

    Raises:
        PayloadError: a rank announces more bytes than its codec could ever send.
    """
    received = yield from swap_runs(
        [(rank, [payload], [size_known]) for rank, payload, size_known in send],
        [(rank, [Expected.of(coder, spec)]) for rank, coder, spec in recv],
        device,
    )
    return {rank: runs[0] for rank, runs in received.items()}


@dataclass(frozen=True, slots=True)
class Expected:
    """A description of a payload that will be received.

    nbytes: `None` where its length goes first; most: bytes that it may have; coder: whose it is.
    """

    nbytes: int | None
    most: int
    coder: Coder

    @classmethod
    def of(cls, coder: Coder, spec: Spec) -> Expected:
        return cls(coder.nbytes(spec), coder.max_nbytes(spec), coder)


def swap_runs(
    send: Sequence[tuple[int, Sequence[Tensor], Sequence[bool]]],
    recv: Sequence[tuple[int, Sequence[Expected]]],
    device: torch.device,
) -> Generator[Hop, Any, dict[int, list[Tensor]]]:
    """Exchange messages of several payloads each.

    Args:
        send: (rank, payloads, which of their sizes are size_known there).
        recv: (rank, the payloads that it sends).
        device: of the payloads.

    Raises:
        PayloadError: a rank announces more bytes than its codec could ever send.
    """
    # 1. Announce the lengths that the receiver cannot know.
    unknown = [
        (rank, [p.numel() for p, fixed in zip(payloads, sizes_known, strict=True) if not fixed])
        for rank, payloads, sizes_known in send
    ]
    lengths = tuple(
        (rank, torch.tensor(sizes).view(torch.uint8).to(device)) for rank, sizes in unknown if sizes
    )
    length_bytes = tuple(
        (rank, _LENGTH * sum(each.nbytes is None for each in expected)) for rank, expected in recv
    )
    sizes = {rank: [each.nbytes for each in expected] for rank, expected in recv}
    if lengths or any(nbytes for _, nbytes in length_bytes):
        announced = yield Exchange(
            lengths, tuple((rank, nbytes) for rank, nbytes in length_bytes if nbytes)
        )
        for rank, expected in recv:
            if rank in announced:
                sizes[rank] = _announced(rank, expected, announced[rank])
    # 2. Exchange the payloads of each rank as one message, and split what comes.
    received: dict[int, list[Tensor]] = {}
    if send or recv:
        whole = yield Exchange(
            tuple((rank, memory.cat(payloads)) for rank, payloads, _ in send),
            tuple((rank, sum(size or 0 for size in sizes[rank])) for rank, _ in recv),
        )
        received = {
            rank: list(whole[rank].split([size or 0 for size in sizes[rank]])) for rank, _ in recv
        }
    return received


def _announced(rank: int, expected: Sequence[Expected], announced: Tensor) -> list[int | None]:
    """Return the sizes of payloads, those not known from the lengths that a rank has sent."""
    lengths = iter(reference.from_bytes(announced.cpu(), torch.int64).tolist())
    sizes = []
    for each in expected:
        size = each.nbytes if each.nbytes is not None else next(lengths)
        if each.nbytes is None and not 0 <= size <= each.most:
            raise PayloadError(
                f"rank {rank} announces {size} bytes where {each.coder!r} sends at most {each.most}"
            )
        sizes.append(size)
    return list(sizes)
