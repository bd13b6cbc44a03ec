"""Who moves the flights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from thinwire.core.route import Flight
from thinwire.core.spec import Ranks
from thinwire.net.link import Transport

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a flight: what codecs and routes computed ("encode"), or a hop ("wire"), in seconds
    of time.perf_counter()."""

    what: Literal["encode", "wire"]
    begin: float
    end: float
    sent_bytes: float = 0.0


class Handle(Protocol[T_co]):
    """A flight in the air; it ends with what the flight returns."""

    @property
    def stages(self) -> Sequence[Stage]:
        """What has happened so far, in order; empty where no time passes."""

    @property
    def encode_s(self) -> float: ...
    @property
    def wire_s(self) -> float: ...
    @property
    def carry_s(self) -> float:
        """Processor time of the thread that carried the hops: copies to and from the wire, calls of
        the transport."""

    @property
    def sent_bytes(self) -> float: ...
    def wait(self) -> T_co:
        """Wait for the flight to land and return its result.

        Raises:
            FlightError: it could not be carried; RankLostError names the ranks where it can.
        """


class Driver(Protocol):
    """The only thing that knows a network or a clock."""

    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...
    @property
    def lanes(self) -> int: ...
    @property
    def global_ranks(self) -> Ranks:
        """The ranks that take part, by their numbers in the whole world; none where that is all of
        them."""

    @property
    def transport(self) -> Transport:
        """Return how the transport uses a link: its window, and whether a message waits."""

    def transport_s(self) -> float:
        """Processor time so far of the transport's own threads, in seconds; 0 where it cannot be
        told."""

    def prepare(self, groups: tuple[Ranks, ...], lanes: int | None = None) -> None:
        """Build the first so many lanes (`None`: all), and what all-reduces over these subsets
        need; every rank calls it alike."""

    def set_phase(self, label: str) -> None:
        """Where this rank stands, for the others to hear if a flight fails."""

    def start(self, flight: Flight[T], lane: int, label: str) -> Handle[T]:
        """Put a flight on a lane: lanes run side by side, the flights of one lane one after another
        to completion.

        Lane number `lanes` is the control lane, for what ranks tell one another outside the
        schedule.
        """

    def close(self) -> None:
        """Run what was started to its end, then stop."""

    def abandon(self, error: BaseException | None = None) -> None:
        """Leave without waiting for flights that may never land; the others are told that this rank
        has left, and by which error."""
