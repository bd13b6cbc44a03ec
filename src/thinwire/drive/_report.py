"""Hold what goes into a simulation and what comes out of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from thinwire.core import Flight


@dataclass(frozen=True)
class Launch:
    """A launch of one flight of all ranks.

    Args:
        flights: {rank: generator}.
        at: the second before which it does not start; or each rank's own (when its bucket is full,
            say), 0 for ranks that it does not name.
    """

    flights: Mapping[int, Flight[Any]]
    at: float | Mapping[int, float] = 0.0

    def at_rank(self, rank: int) -> float:
        """Return the second before which a rank does not start."""
        return self.at.get(rank, 0.0) if isinstance(self.at, Mapping) else self.at


@dataclass(frozen=True, slots=True)
class Event:
    """A record of what a rank did on a lane, in seconds.

    kind: "think", "send" (`nbytes` to `peer`) or "wait".
    """

    rank: int
    lane: int
    flight: int
    kind: str
    begin: float
    end: float
    peer: int | None = None
    nbytes: float = 0.0


@dataclass
class Report:
    """A report of a simulation.

    ends: the second at which each rank was done. ways: the bytes that went through each way, by
    the names of `Network.ways`. outcomes: by lane and flight, {rank: outcome}. events: in the order
    in which they ended.
    """

    ends: dict[int, float] = field(default_factory=dict)
    sent_bytes: dict[int, float] = field(default_factory=dict)
    messages: dict[int, int] = field(default_factory=dict)
    ways: Counter[Hashable] = field(default_factory=Counter)
    outcomes: list[list[dict[int, Any]]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Return the second at which the last rank was done."""
        return max(self.ends.values(), default=0.0)

    @property
    def outcome(self) -> dict[int, Any]:
        """Return the outcomes of the only flight."""
        ((only,),) = self.outcomes
        return only
