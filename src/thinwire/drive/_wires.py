"""Share the ways of a network among the messages of a simulation: how fast is each at a time."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from thinwire.net import Link, Network, Transport


@dataclass(frozen=True)
class Wires:
    """A cache of what lies between two ranks of a network."""

    network: Network
    transport: Transport = Transport()
    _links: dict[tuple[int, int], Link] = field(default_factory=dict, compare=False)
    _ways: dict[tuple[int, int], dict[Hashable, float]] = field(default_factory=dict, compare=False)

    def between(self, source: int, to: int) -> Link:
        """Return the link from a rank to another."""
        if (source, to) not in self._links:
            self._links[source, to] = self.network.between(source, to, self.transport)
        return self._links[source, to]

    def ways(self, source: int, to: int) -> dict[Hashable, float]:
        """Return what a message between two ranks goes through: bytes per second by way."""
        if (source, to) not in self._ways:
            self._ways[source, to] = {
                way: math.inf if rate is None else rate / 8
                for way, rate in self.network.ways(source, to).items()
            }
        return self._ways[source, to]


@dataclass(eq=False)
class Flow:
    """A message on its way out: its bytes, its ways, and the most that it may get of them."""

    remaining_bytes: float
    ways: dict[Hashable, float]
    most_bytes_per_s: float
    nbytes: float
    rate_bytes_per_s: float = 0.0


def allot(flows: Iterable[Flow]) -> None:
    """Set the rate of each flow by max-min fairness.

    All flows grow alike until a way is full. Its flows keep what they have, the others go on.

    Example:
        >>> narrow = {"up a": 10.0}
        >>> flows = [Flow(1, narrow, 99.0, 1), Flow(1, narrow | {"down b": 4.0}, 99.0, 1)]
        >>> allot(flows)
        >>> [flow.rate_bytes_per_s for flow in flows]
        [6.0, 4.0]
    """
    growing = list(flows)
    free: dict[Hashable, float] = {
        way: rate
        for flow in growing
        for way, rate in flow.ways.items()
        if rate != math.inf  # what nothing limits is never full
    }
    while growing:
        # 1. Each way's even part for the flows that still grow.
        users: dict[Hashable, int] = {}
        for flow in growing:
            for way in flow.ways:
                if way in free:
                    users[way] = users.get(way, 0) + 1
        even = {way: free[way] / count for way, count in users.items()}

        # 2. The first limit that growing flows meet, and who meets it.
        level = min(*even.values(), *(flow.most_bytes_per_s for flow in growing), math.inf)
        near = level * (1 + 1e-12)
        full = {way for way, rate in even.items() if rate <= near}
        fixed = {
            flow
            for flow in growing
            if flow.most_bytes_per_s <= near or not full.isdisjoint(flow.ways)
        }

        # 3. These keep what they have; the others share what is left.
        for flow in fixed:
            flow.rate_bytes_per_s = min(level, flow.most_bytes_per_s)
            for way in flow.ways:
                if way in free:
                    free[way] -= flow.rate_bytes_per_s
        growing = [flow for flow in growing if flow not in fixed]
