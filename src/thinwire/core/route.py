"""Define hops, and the routes that yield them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias, TypeVar

from torch import Tensor

from thinwire.core.codec import Codec, Outcome
from thinwire.core.component import Component
from thinwire.core.spec import RankContext, Ranks, Spec
from thinwire.core.state import State
from thinwire.net.link import Link

if TYPE_CHECKING:
    from thinwire.core.target import Target


@dataclass(frozen=True, slots=True)
class AllReduce:
    """A hop that sums `tensor` over `group` in place, by the transport's own all-reduce; answered
    with it."""

    tensor: Tensor
    group: Ranks


@dataclass(frozen=True, slots=True)
class Exchange:
    """A hop that sends bytes to some ranks and receives from some, in the order given; answered
    with {rank: payload}.

    Sizes are known to both sides; nothing is moved for a size of 0.
    """

    send: tuple[tuple[int, Tensor], ...]
    recv: tuple[tuple[int, int], ...]


def allreduce_nbytes(nbytes: int, world: int) -> float:
    """Return the bytes out of each rank in a ring all-reduce (gloo's and NCCL's), on average over
    ranks: 2 (K-1)/K · M."""
    return 2 * (world - 1) * nbytes / world


def allreduce_messages(nbytes: int, world: int) -> int:
    """Return the messages that each rank sends in a ring all-reduce."""
    return 2 * (world - 1) if nbytes else 0


@dataclass(frozen=True, slots=True)
class Cost:
    """A flight's cost for one rank: bytes and messages, `None` where the data decides, and seconds.

    The seconds are those of the slowest rank, where all links are alike and all ranks start
    together; encoding is not in them.
    """

    sent_bytes: float | None
    messages: float | None
    seconds: float


Hop: TypeAlias = AllReduce | Exchange
T = TypeVar("T")
Flight: TypeAlias = Generator[Hop, Any, T]
"""A transfer in progress: it yields hops, is sent their answers, and returns what it is about: an
`Outcome` of a codec, every rank's bytes, a vote."""


class Route(Component, ABC):
    """A route: it drives `codec.rounds` and yields hops, and never touches a process group. It may
    write into `x`."""

    kind: ClassVar[str] = "how"
    consensus: ClassVar[bool] = True
    """All ranks end with the same bits (gossip: no)."""
    opens_each_packet: ClassVar[bool] = False
    """Every rank opens every other rank's packet as it was sent, so a packet has no partner."""
    verifies: ClassVar[bool] = False
    """Every message carries a checksum, so what is not compressed must travel so, too."""
    carries_mask: ClassVar[bool] = False
    """Outcomes carry the mask of a codec that is `partial`."""

    @property
    def needs_link(self) -> bool:
        """Return whether `bind` wants the link as it was measured at attach."""
        return False

    @property
    def uses_allreduce(self) -> bool:
        """Return whether the transport adds up by itself in some hops (`AllReduce`)."""
        return False

    def init(self, codec: Codec, spec: Spec, ctx: RankContext) -> State:
        """Make new state of the codec (and of the route's own codecs) for the spans that this rank
        will encode."""
        return State(children={"codec": codec.init(spec, ctx)})

    def groups(self, world: int) -> tuple[Ranks, ...]:
        """Return the subsets of ranks that it will all-reduce over; built once, at attach.

        Raises:
            StrategyError: it cannot serve a world of this size.
        """
        return ()

    def partners(self, group_rank: int, world: int) -> int:
        """Return with how many other ranks one rank of the group exchanges something."""
        return world - 1

    def refuses(self, codec: Codec) -> str | None:
        """Return why this codec cannot travel this route and what to do, or `None`."""
        return None

    def suits(self, on: Target) -> str | None:
        """Return why this target cannot use this route and what to do, or `None`."""
        return None

    def bind(self, world: int, link: Link | None = None) -> Self:
        """Return the route with the facts of this world: the ranks of a host, the measured link.

        Called once, on every rank with the same arguments, before anything is made for the route.

        Raises:
            StrategyError: it cannot serve this world, or needs what is not there.
        """
        self.groups(world)
        return self

    def choose(self, codec: Codec, spec: Spec, world: int) -> Route:
        """Return the route that a flight of this span takes, where there are several to choose
        from."""
        return self

    def alternatives(self, codec: Codec, world: int) -> tuple[Route, ...]:
        """Return the routes that it may choose for this codec; itself, where it does not choose."""
        return (self,)

    def corrected(self, times: Callable[[Route], float]) -> Self:
        """Return the route with what was found at attach: how many times its formula each of its
        alternatives takes."""
        return self

    @abstractmethod
    def carry(
        self, codec: Codec, x: Tensor, spec: Spec, state: State, ctx: RankContext
    ) -> Flight[Outcome]:
        """Return the flight of `x` (spec.numel,), from this rank's side; it may write into `x`."""

    @abstractmethod
    def sent_nbytes(self, codec: Codec, spec: Spec, ctx: RankContext) -> float | None:
        """Return the bytes that this rank hands to the wire for one flight, in closed form; `None`
        where the data decides."""

    def reencodes(self, codec: Codec, world: int) -> int:
        """Return how many times a sum is encoded again on its way; each time a lossy codec loses
        more."""
        return 0

    def sent_messages(self, codec: Codec, spec: Spec, ctx: RankContext) -> float | None:
        """Return the messages that this rank sends for one flight, in closed form; `None` where the
        data, or the codec's rounds, decide."""
        return None

    def seconds(self, codec: Codec, spec: Spec, ctx: RankContext, link: Link) -> float:
        """Return the seconds on the wire, in closed form.

        All links are taken to be alike, and all ranks to start together. A codec of several rounds
        counts as one of one round, and one whose bytes the data decides at its largest.
        """
        raise NotImplementedError(f"{self!r} gives no formula of its seconds")

    def cost(self, codec: Codec, spec: Spec, ctx: RankContext, link: Link) -> Cost:
        """Return the bytes, messages and seconds of one flight."""
        return Cost(
            self.sent_nbytes(codec, spec, ctx),
            self.sent_messages(codec, spec, ctx),
            self.seconds(codec, spec, ctx, link),
        )
