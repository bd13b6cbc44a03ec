"""What routes share: driving a codec's rounds, and telling lengths before data-sized payloads."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
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

Talk: TypeAlias = Generator[Hop, Any, Tensor]
"""A part of a flight that ends in a tensor."""
Totals: TypeAlias = Generator[Hop, Any, dict[int, Tensor]]
"""A part of a flight that ends in the sum of each span."""

_LENGTH = 8


def one_span(rounds: Rounds, total: Callable[[Packet], Talk]) -> Flight[Outcome]:
    """Drive one codec to its outcome, each packet answered by what `total` makes of it."""
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
    spans: Sequence[Spec],
    state: State,
    ctx: RankContext,
    totals: Callable[[dict[int, Packet]], Totals],
) -> Flight[Outcome]:
    """Drive the codec on each span side by side; a round's packets, {span: packet}, are answered by
    what `totals` makes of them.

    state: has a child for each span, by its number.
    """
    begin = spans[0].begin
    flows = [
        codec.rounds(x[span.begin - begin : span.end - begin], span, state.child(str(j)), ctx)
        for j, span in enumerate(spans)
    ]
    ordered = yield from side_by_side(flows, totals)
    shares = [outcome.sent for outcome in ordered if outcome.sent is not None]
    known = len(shares) == len(ordered)
    sent = (lambda: torch.cat([own() for own in shares])) if known else None
    mask = (
        (lambda: torch.cat([_spoken(outcome) for outcome in ordered]))
        if any(outcome.mask for outcome in ordered)
        else None
    )
    return Outcome(joined(x, [outcome.total for outcome in ordered]), sent, mask)


def places(codec: Codec, x: Tensor, spans: Sequence[Spec]) -> dict[int, Tensor]:
    """Where the sum of each span may be written, {span: place}: in x, if the codec does not look
    there again."""
    if needs_input_later(codec):
        return {}
    begin = spans[0].begin
    return {j: x[span.begin - begin : span.end - begin] for j, span in enumerate(spans)}


def joined(x: Tensor, totals: Sequence[Tensor]) -> Tensor:
    """The totals of spans, one after the other: x itself, where they lie there."""
    at = x.data_ptr()
    for total in totals:
        if total.data_ptr() != at or total.dtype != x.dtype:
            return memory.cat(list(totals))
        at += total.numel() * total.dtype.itemsize
    return x


def _spoken(outcome: Outcome) -> Tensor:
    """Which entries a span's total speaks of."""
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
    """Send (rank, payload, size is known there) and receive (rank, coder, spec) payloads; sizes not
    known go first, 8 bytes each.

    Raises:
        PayloadError: a rank announces more bytes than its codec could ever send.
    """
    got = yield from swap_runs(
        [(rank, [payload], [known]) for rank, payload, known in send],
        [(rank, [Due.of(coder, spec)]) for rank, coder, spec in recv],
        device,
    )
    return {rank: runs[0] for rank, runs in got.items()}


@dataclass(frozen=True, slots=True)
class Due:
    """A payload that is awaited: its bytes, or `None` where its length goes first; the most that it
    may have, and whose it is."""

    nbytes: int | None
    most: int
    coder: Coder

    @classmethod
    def of(cls, coder: Coder, spec: Spec) -> Due:
        return cls(coder.nbytes(spec), coder.max_nbytes(spec), coder)


def swap_runs(
    send: Sequence[tuple[int, Sequence[Tensor], Sequence[bool]]],
    recv: Sequence[tuple[int, Sequence[Due]]],
    device: torch.device,
) -> Generator[Hop, Any, dict[int, list[Tensor]]]:
    """The same for messages of several payloads each: (rank, payloads, which sizes are known there)
    and (rank, what is due).

    Raises:
        PayloadError: a rank announces more bytes than its codec could ever send.
    """
    loose = [
        (rank, [p.numel() for p, known in zip(payloads, knowns, strict=True) if not known])
        for rank, payloads, knowns in send
    ]
    lengths = tuple(
        (rank, torch.tensor(sizes).view(torch.uint8).to(device)) for rank, sizes in loose if sizes
    )
    asked = tuple((rank, _LENGTH * sum(each.nbytes is None for each in due)) for rank, due in recv)
    sizes = {rank: [each.nbytes for each in due] for rank, due in recv}
    if lengths or any(nbytes for _, nbytes in asked):
        told = yield Exchange(lengths, tuple((rank, nbytes) for rank, nbytes in asked if nbytes))
        for rank, due in recv:
            if rank in told:
                sizes[rank] = _announced(rank, due, told[rank])
    got: dict[int, list[Tensor]] = {}
    if send or recv:
        whole = yield Exchange(
            tuple((rank, memory.cat(payloads)) for rank, payloads, _ in send),
            tuple((rank, sum(size or 0 for size in sizes[rank])) for rank, _ in recv),
        )
        got = {
            rank: list(whole[rank].split([size or 0 for size in sizes[rank]])) for rank, _ in recv
        }
    return got


def _announced(rank: int, due: Sequence[Due], told: Tensor) -> list[int | None]:
    """The sizes of what is due, with what a rank told of the lengths that were not known."""
    lengths = iter(reference.from_bytes(told.cpu(), torch.int64).tolist())
    sizes = []
    for each in due:
        size = each.nbytes if each.nbytes is not None else next(lengths)
        if each.nbytes is None and not 0 <= size <= each.most:
            raise PayloadError(
                f"rank {rank} announces {size} bytes where {each.coder!r} sends at most {each.most}"
            )
        sizes.append(size)
    return list(sizes)
