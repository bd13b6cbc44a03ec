"""Hops, and the routes that yield them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from torch import Tensor

from thinwire.core.codec import Codec, Outcome
from thinwire.core.spec import Ranks, Seat, Spec
from thinwire.core.state import State
from thinwire.registry import Member


@dataclass(frozen=True, slots=True)
class AllReduce:
    """Sum `tensor` over `group` in place, by whatever the transport calls all-reduce; answered with it."""

    tensor: Tensor
    group: Ranks


@dataclass(frozen=True, slots=True)
class Exchange:
    """Send bytes to some ranks, receive from some, in the order given; answered with {rank: payload}.

    Sizes are known to both sides; nothing is moved for a size of 0.
    """

    send: tuple[tuple[int, Tensor], ...]
    recv: tuple[tuple[int, int], ...]


def allreduce_nbytes(nbytes: int, world: int) -> float:
    """Bytes that each rank hands to the wire in a ring all-reduce (gloo's and NCCL's), on average over ranks: 2 (K-1)/K · M."""
    return 2 * (world - 1) * nbytes / world


Hop: TypeAlias = AllReduce | Exchange
Flight: TypeAlias = Generator[Hop, Any, Outcome]


class Route(Member, ABC):
    """How to carry it: drives `codec.rounds` and yields hops; never touches a process group. It may write into `x`."""

    kind: ClassVar[str] = "how"
    consensus: ClassVar[bool] = True
    """All ranks end with the same bits (gossip: no)."""

    def init(self, codec: Codec, spec: Spec, seat: Seat) -> State:
        """Fresh state of the codec (and of the route's own codecs) for the spans that this rank will encode."""
        return State(children={"codec": codec.init(spec, seat)})

    def groups(self, world: int) -> tuple[Ranks, ...]:
        """Subsets of ranks that it will all-reduce over; built once, at attach.

        Raises:
            StrategyError: it cannot serve a world of this size.
        """
        return ()

    def refuses(self, codec: Codec) -> str | None:
        """Why this codec cannot travel this route and what to do, or `None`."""
        return None

    @abstractmethod
    def carry(self, codec: Codec, x: Tensor, spec: Spec, state: State, seat: Seat) -> Flight:
        """The flight of `x` (spec.numel,), from this rank's side."""

    @abstractmethod
    def sent_nbytes(self, codec: Codec, spec: Spec, seat: Seat) -> float | None:
        """Bytes that this rank hands to the wire for one flight, in closed form; `None` where the data decides."""
