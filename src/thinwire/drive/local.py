"""Run N ranks in one process without a network: one loop runs the flights of all ranks in step.

`run` takes one generator a rank and moves what they yield. `Fabric` gives each of N threads a
driver, so that N engines run in one process.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from thinwire.core import (
    AllReduce,
    Exchange,
    Flight,
    Hop,
    Ranks,
    Stage,
    Transport,
    allreduce_nbytes,
)
from thinwire.errors import FlightError, RankLostError

T = TypeVar("T")


def run(
    flights: Mapping[int, Flight[T]],
    sent: dict[int, float] | None = None,
    order: Sequence[int] | None = None,
) -> dict[int, T]:
    """Run one flight a rank to the end and return what each of them returns.

    Args:
        flights: {rank: generator}.
        sent: counts the bytes that each rank hands to the wire, as the torch driver does.
        order: the ranks in the order in which they come; ascending by default.

    Raises:
        FlightError: the ranks wait for something that nobody sends, or send what nobody takes, or
            sizes do not match; the message says which ranks.

    Example:
        >>> def flight(rank):
        ...     return (yield AllReduce(torch.tensor([float(rank)]), (0, 1)))
        >>> run({rank: flight(rank) for rank in (0, 1)})[1]
        tensor([1.])
    """
    order = sorted(flights) if order is None else order
    sent = sent if sent is not None else {}
    sent.update({rank: sent.get(rank, 0.0) for rank in flights})
    # By (sender, receiver): messages that have been sent and not taken, in order.
    mail: dict[tuple[int, int], deque[Tensor]] = {}
    waiting: dict[int, Hop] = {}
    results: dict[int, T] = {}

    def advance(rank: int, reply: Any) -> None:
        try:
            hop = flights[rank].send(reply)
        except StopIteration as stop:
            results[rank] = stop.value
            waiting.pop(rank, None)
            return
        waiting[rank] = hop
        if isinstance(hop, Exchange):
            for to, payload in hop.send:
                if payload.numel():
                    mail.setdefault((rank, to), deque()).append(payload.clone())
                    sent[rank] += payload.numel()

    # 1. Let every rank go to its first hop.
    for rank in order:
        advance(rank, None)

    # 2. Answer each hop whose bytes are there, or whose whole group waits, until nobody can go on.
    while waiting:
        moved = False
        for rank in order:
            hop = waiting.get(rank)
            if isinstance(hop, Exchange) and all(
                not n or mail.get((source, rank)) for source, n in hop.recv
            ):
                advance(rank, {source: _receive(mail, source, rank, n) for source, n in hop.recv})
                moved = True
            elif isinstance(hop, AllReduce) and _met(hop, waiting):
                _reduce(hop.group, waiting, sent)
                for peer in hop.group:
                    peer_hop = waiting[peer]
                    assert isinstance(peer_hop, AllReduce)
                    advance(peer, peer_hop.tensor)
                moved = True
        if not moved:
            waits = (f"rank {r} waits in {describe_wait(h)}" for r, h in sorted(waiting.items()))
            raise FlightError(f"no rank can go on: {'; '.join(waits)}")
    # 3. What nobody took shows that ranks' hops do not match.
    left = [
        f"{sum(p.numel() for p in box)} bytes from rank {source} to rank {to}"
        for (source, to), box in sorted(mail.items())
        if box
    ]
    if left:
        raise FlightError(
            f"all ranks are done and nobody took {', '.join(left)}: their hops crossed"
        )
    return results


def _receive(
    mail: dict[tuple[int, int], deque[Tensor]], source: int, rank: int, nbytes: int
) -> Tensor:
    if not nbytes:
        return torch.empty(0, dtype=torch.uint8)
    payload = mail[source, rank].popleft()
    if payload.numel() != nbytes:
        raise FlightError(
            f"rank {rank} expects {nbytes} bytes from rank {source} and {payload.numel()} came: "
            "their hops crossed"
        )
    return payload


def _met(hop: AllReduce, waiting: Mapping[int, Hop]) -> bool:
    peers = [waiting.get(rank) for rank in hop.group]
    return all(isinstance(peer, AllReduce) and peer.group == hop.group for peer in peers)


def _reduce(group: Ranks, waiting: Mapping[int, Hop], sent: dict[int, float]) -> None:
    tensors = [hop.tensor for rank in group if isinstance(hop := waiting[rank], AllReduce)]
    sum_up(tensors, group)
    for rank, tensor in zip(group, tensors, strict=True):
        sent[rank] += allreduce_nbytes(tensor.numel() * tensor.dtype.itemsize, len(group))


def sum_up(tensors: Sequence[Tensor], group: Ranks) -> None:
    """Sum in rank order, in the tensors' own dtype, and put the sum in each rank's tensor.

    Raises:
        FlightError: the tensors are not alike.
    """
    if len({(t.numel(), t.dtype) for t in tensors}) > 1:
        raise FlightError(
            f"all-reduce over {group} of different tensors: "
            f"{[(t.numel(), t.dtype) for t in tensors]}"
        )
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total += tensor
    for tensor in tensors:
        tensor.copy_(total)


def describe_wait(hop: Hop) -> str:
    """Return in words what a rank in this hop waits for."""
    if isinstance(hop, AllReduce):
        return f"an all-reduce over {hop.group}"
    return (
        "an exchange, for "
        f"{', '.join(f'{n} bytes from rank {source}' for source, n in hop.recv if n)}"
    )


@dataclass
class _Meeting:
    """A meeting of all ranks at one flight of one lane: their flights, and what these returned."""

    flights: dict[int, Flight[Any]] = field(default_factory=dict)
    results: dict[int, Any] | None = None
    error: Exception | None = None
    sent: dict[int, float] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)


class Fabric:
    """A world of ranks in one process: give `fabric.driver(rank)` to the engine of each thread.

    The last rank to start a flight runs it for all; a rank that never comes makes the others raise
    after `timeout`.
    """

    def __init__(self, world: int, timeout: timedelta = timedelta(seconds=30)) -> None:
        self.world = world
        self.timeout = timeout
        self.transport = Transport()
        self._lock = threading.Lock()
        self._meetings: dict[tuple[int, int], _Meeting] = {}

    def driver(self, rank: int, lanes: int = 1) -> LocalDriver:
        return LocalDriver(self, rank, lanes)

    def join(self, rank: int, lane: int, number: int, flight: Flight[Any]) -> _Meeting:
        """Bring a rank's n-th flight of a lane; the last rank to come runs it for all."""
        with self._lock:
            meeting = self._meetings.setdefault((lane, number), _Meeting())
            meeting.flights[rank] = flight
            if len(meeting.flights) < self.world:
                return meeting
            del self._meetings[lane, number]
        try:
            meeting.results = self.carry(meeting.flights, meeting.sent, meeting.seconds, lane)
        except Exception as error:  # every rank of the flight raises it in `wait`
            meeting.error = error
        meeting.done.set()
        return meeting

    def carry(
        self,
        flights: Mapping[int, Flight[T]],
        sent: dict[int, float],
        seconds: dict[int, float],
        lane: int,
    ) -> dict[int, T]:
        """Run one flight of all ranks; note what each has sent and how long its wire took."""
        return run(flights, sent)


class LocalDriver:
    """A driver of one rank of a `Fabric`."""

    def __init__(self, fabric: Fabric, rank: int, lanes: int) -> None:
        self.fabric, self.rank, self.lanes = fabric, rank, lanes
        self._numbers: Counter[int] = Counter()

    @property
    def world(self) -> int:
        return self.fabric.world

    @property
    def global_ranks(self) -> Ranks:
        return ()

    @property
    def transport(self) -> Transport:
        return self.fabric.transport

    def transport_s(self) -> float:
        return 0.0

    def prepare(
        self, groups: tuple[Ranks, ...], lanes: int | None = None, peers: int | None = None
    ) -> None:
        """Build nothing: there are no connections."""

    def set_phase(self, label: str) -> None:
        """Ignore the label: an error names the flight."""

    def start(self, flight: Flight[T], lane: int, label: str) -> LocalHandle[T]:
        number = self._numbers[lane]
        self._numbers[lane] += 1
        return LocalHandle(self.fabric.join(self.rank, lane, number, flight), self, label)

    def close(self) -> None:
        """Close nothing: there are no connections."""

    def abandon(self, error: BaseException | None = None) -> None:
        """Leave nothing: no other process waits."""


@dataclass
class LocalHandle(Generic[T]):
    """A flight of one rank of a `Fabric`; no time passes on its wire."""

    meeting: _Meeting
    driver: LocalDriver
    label: str
    encode_s: float = 0.0
    carry_s: float = 0.0
    stages: tuple[Stage, ...] = ()

    @property
    def wire_s(self) -> float:
        return self.meeting.seconds.get(self.driver.rank, 0.0)

    @property
    def sent_bytes(self) -> float:
        return self.meeting.sent.get(self.driver.rank, 0.0)

    def wait(self) -> T:
        fabric = self.driver.fabric
        # 1. Wait until the last rank has come and run the flight for all.
        if not self.meeting.done.wait(fabric.timeout.total_seconds()):
            missing = sorted(set(range(fabric.world)) - set(self.meeting.flights))
            raise RankLostError(
                missing,
                (
                    f"{self.label}: ranks {missing} did not come within "
                    f"{fabric.timeout.total_seconds():g} s"
                ),
            )
        # 2. Every rank raises what the one that ran it has caught.
        if self.meeting.error is not None:
            raise FlightError(f"{self.label}: {self.meeting.error}") from self.meeting.error
        assert self.meeting.results is not None
        result: T = self.meeting.results[self.driver.rank]
        return result
