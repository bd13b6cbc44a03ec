"""The wires of a simulation: who shares what, and how fast each message is when several are on
their way."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain

from thinwire.core import Link


@dataclass(frozen=True)
class Channel:
    """A wire that several hosts share: all bytes between two of `hosts` (or to and from one of
    them, with `leaving`) go through it.

    Args:
        rate_bytes_per_s: of all of them together.
        hosts: who.
        leaving: it is the way out of these hosts to all others (and in from them), not the way
            among them.
    """

    rate_bytes_per_s: float
    hosts: frozenset[int]
    leaving: bool = False

    def carries(self, source: int, to: int) -> bool:
        inside = (source in self.hosts) + (to in self.hosts)
        return inside == (1 if self.leaving else 2)


@dataclass(frozen=True)
class Wires:
    """What lies between ranks. Each host has an up-link and a down-link of the link's rate, full
    duplex, which its ranks and lanes share.

    Args:
        link: between hosts. Its `inside`, if any, is between ranks of one host, of which each has
            its own way in and out at that rate.
        hosts: the host of each rank; empty for a host each.
        up_bytes_per_s, down_bytes_per_s: of single hosts, where they are not the link's.
        pairs: of single pairs (source host, host), in that direction: latency, the most that a
            message gets, and time a message.
        channels: wires that hosts share beside.

    Raises:
        ValueError: a rate that is not positive.

    Example:
        >>> two_by_two = Wires(Link(0.01, 1e6, inside=Link(0.0001, 1e9)), hosts=(0, 0, 1, 1))
        >>> two_by_two.between(0, 1).latency_s, two_by_two.between(0, 2).latency_s
        (0.0001, 0.01)
    """

    link: Link
    hosts: tuple[int, ...] = ()
    up_bytes_per_s: Mapping[int, float] = field(default_factory=dict)
    down_bytes_per_s: Mapping[int, float] = field(default_factory=dict)
    pairs: Mapping[tuple[int, int], Link] = field(default_factory=dict)
    channels: tuple[Channel, ...] = ()

    def __post_init__(self) -> None:
        rates = chain(
            self.up_bytes_per_s.values(),
            self.down_bytes_per_s.values(),
            (channel.rate_bytes_per_s for channel in self.channels),
        )
        if not all(rate > 0 for rate in rates):
            raise ValueError("Wires(…): every rate is positive; leave out what does not exist")

    def host(self, rank: int) -> int:
        """Where a rank lives.

        Raises:
            ValueError: `hosts` does not say.
        """
        if not self.hosts:
            return rank
        if rank >= len(self.hosts):
            raise ValueError(
                f"Wires(hosts={self.hosts}): rank {rank} has no host; give one for each rank"
            )
        return self.hosts[rank]

    def between(self, source: int, to: int) -> Link:
        """The link from a rank to another."""
        here, there = self.host(source), self.host(to)
        if here == there:
            return self.link.inside or self.link
        return self.pairs.get((here, there), self.link)

    def ways(self, source: int, to: int) -> dict[Hashable, float]:
        """What a message between two ranks goes through, each with its bytes a second."""
        here, there = self.host(source), self.host(to)
        if here == there:
            rate = (self.link.inside or self.link).rate_bytes_per_s
            return {("out of rank", source): rate, ("into rank", to): rate}
        found: dict[Hashable, float] = {
            ("up from host", here): self.up_bytes_per_s.get(here, self.link.rate_bytes_per_s),
            ("down to host", there): self.down_bytes_per_s.get(there, self.link.rate_bytes_per_s),
        }
        for number, channel in enumerate(self.channels):
            if channel.carries(here, there):
                found["channel", number] = channel.rate_bytes_per_s
        return found


@dataclass(eq=False)
class Flow:
    """A message on its way out: the bytes that are left, its ways and the most that it may get of
    them."""

    left: float
    ways: dict[Hashable, float]
    most: float
    size: float
    rate: float = 0.0


def share(flows: Iterable[Flow]) -> None:
    """Set the rate of each flow: all grow alike until a way is full, whose flows keep what they
    have, and so on (max-min fairness).

    Example:
        >>> narrow = {"up a": 10.0}
        >>> flows = [Flow(1, narrow, 99.0, 1), Flow(1, narrow | {"down b": 4.0}, 99.0, 1)]
        >>> share(flows)
        >>> [flow.rate for flow in flows]
        [6.0, 4.0]
    """
    free = list(flows)
    left: dict[Hashable, float] = {way: rate for flow in free for way, rate in flow.ways.items()}
    while free:
        users: dict[Hashable, int] = {}
        for flow in free:
            for way in flow.ways:
                users[way] = users.get(way, 0) + 1
        fair = {way: left[way] / count for way, count in users.items()}
        level = min(*fair.values(), *(flow.most for flow in free))
        near = level * (1 + 1e-12)
        full = {way for way, rate in fair.items() if rate <= near}
        fixed = [flow for flow in free if flow.most <= near or not full.isdisjoint(flow.ways)]
        for flow in fixed:
            flow.rate = min(level, flow.most)
            for way in flow.ways:
                left[way] -= flow.rate
        settled = set(fixed)
        free = [flow for flow in free if flow not in settled]
