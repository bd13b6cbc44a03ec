"""Describe drivers: they move flights, and alone touch a network or a clock."""

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
    """A part of a flight: computing of codecs and routes ("encode"), or a hop ("wire").

    begin, end: seconds of time.perf_counter().
    """

    what: Literal["encode", "wire"]
    begin: float
    end: float
    sent_bytes: float = 0.0


class Handle(Protocol[T_co]):
    """A handle of a flight in the air; it ends with what the flight returns."""

    @property
    def stages(self) -> Sequence[Stage]:
        """Return the stages so far, in order; empty where no time passes."""

    @property
    def encode_s(self) -> float:
        """Return the processor time of codecs and routes."""

    @property
    def wire_s(self) -> float:
        """Return the seconds in hops."""

    @property
    def carry_s(self) -> float:
        """Return the processor time of the thread that carried the hops.

        It copies to and from the wire, and calls the transport.
        """

    @property
    def sent_bytes(self) -> float:
        """Return the bytes that this rank handed to the wire."""

    def wait(self) -> T_co:
        """Wait for the flight to land and return its result.

        Raises:
            FlightError: it could not be carried; RankLostError names the ranks where it can.
        """


class Driver(Protocol):
    """A driver, which moves the flights of one rank.

    rank, world: of the group that it serves. lanes: flights that travel side by side.
    """

    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...
    @property
    def lanes(self) -> int: ...
    @property
    def global_ranks(self) -> Ranks:
        """Return the ranks that take part, by their numbers in the whole world; none where that is
        all of them."""

    @property
    def transport(self) -> Transport:
        """Return how the transport uses a link: its window, and whether a message waits."""

    def transport_s(self) -> float:
        """Return the seconds of processor time so far of the transport's own threads; 0 where the
        system does not count it."""

    def prepare(
        self, groups: tuple[Ranks, ...], lanes: int | None = None, peers: int | None = None
    ) -> None:
        """Build the first so many lanes (`None`: all), and what all-reduces over these subsets
        need; every rank calls it alike.

        Args:
            peers: how many other ranks this one exchanges something with; `None`: all.
        """

    def set_phase(self, label: str) -> None:
        """Note where this rank stands; the others name it if a flight fails."""

    def start(self, flight: Flight[T], lane: int, label: str) -> Handle[T]:
        """Put a flight on a lane: lanes run side by side, the flights of one lane one after another
        to completion.

        Lane number `lanes` is the control lane, for all that ranks exchange outside the schedule.
        """

    def close(self) -> None:
        """Run what was started to its end, then stop."""

    def abandon(self, error: BaseException | None = None) -> None:
        """Leave without waiting for flights that may never land; the others learn that this rank
        has left, and by which error."""
