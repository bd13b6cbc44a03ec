"""What routes share: driving a codec's rounds, and telling lengths before data-sized payloads."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from thinwire.core import Coder, Exchange, Hop, Outcome, Packet, Rounds, Spec
from thinwire.errors import PayloadError
from thinwire.kernels import reference

Talk: TypeAlias = Generator[Hop, Any, Tensor]
"""A part of a flight that ends in a tensor."""

_LENGTH = 8


def one_span(rounds: Rounds, total: Callable[[Packet], Talk]) -> Generator[Hop, Any, Outcome]:
    """Drive one codec to its outcome, each packet answered by what `total` makes of it."""
    try:
        packet = next(rounds)
        while True:
            packet = rounds.send((yield from total(packet)))
    except StopIteration as stop:
        outcome: Outcome = stop.value
        return outcome


def swap(
    send: Sequence[tuple[int, Tensor, bool]], recv: Sequence[tuple[int, Coder, Spec]], device: torch.device
) -> Generator[Hop, Any, dict[int, Tensor]]:
    """Send (rank, payload, size is known there) and receive (rank, coder, spec) payloads; sizes not known go first, 8 bytes each.

    Raises:
        PayloadError: a rank announces more bytes than its codec could ever send.
    """
    sizes = {rank: coder.nbytes(spec) for rank, coder, spec in recv}
    lengths = tuple((rank, torch.tensor([payload.numel()]).view(torch.uint8).to(device)) for rank, payload, known in send if not known)
    asked = tuple((rank, _LENGTH) for rank, _, _ in recv if sizes[rank] is None)
    if lengths or asked:
        told = yield Exchange(lengths, asked)
        for rank, coder, spec in recv:
            if sizes[rank] is None:
                size = int(reference.from_bytes(told[rank].cpu(), torch.int64))
                if not 0 <= size <= coder.max_nbytes(spec):
                    raise PayloadError(f"rank {rank} announces {size} bytes where {coder!r} sends at most {coder.max_nbytes(spec)}")
                sizes[rank] = size
    got: dict[int, Tensor] = {}
    if send or recv:
        got = yield Exchange(tuple((rank, payload) for rank, payload, _ in send), tuple((rank, size or 0) for rank, size in sizes.items()))
    return got
