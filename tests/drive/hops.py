"""Flights made of hops, for tests of drivers."""

import torch
from torch import Tensor

from thinwire.core import Flight, Hop, Outcome


def flight(*hops: Hop) -> Flight[Outcome]:
    """Yields these hops, and ends with the last answer that is a tensor."""
    last = torch.zeros(1)
    for hop in hops:
        reply = yield hop
        last = reply if isinstance(reply, Tensor) else last
    return Outcome(last)


def bytes_of(n: int) -> Tensor:
    return torch.zeros(n, dtype=torch.uint8)
