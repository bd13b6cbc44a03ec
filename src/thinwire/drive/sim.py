"""N ranks in one process on simulated wires: the same flights, a virtual clock, and no waiting.

Messages are as the torch driver sends them: all receives of an exchange are posted, then its sends
go out one at a time in the order given, each once the one before has left; the exchange ends when
the last send has left and the last receive is there. A message holds its sender for `message_s`,
then its bytes leave at the rate that it gets of the ways that it shares with others (max-min
fairness), and it is there `latency_s` after the last of them has left. Where the link `waits`
(gloo), it begins when its receiver's word that it is ready is there. The transport's own all-reduce
is a ring. Encoding takes no time, or what `think` says.

What it does not know: TCP's slow start and losses, a receiver's buffers, processors that are busy.
The lab has those.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch

from thinwire.core import AllReduce, Exchange, Flight, Ranks, allreduce_nbytes
from thinwire.drive._wires import Channel, Flow, Wires, share
from thinwire.drive.local import Fabric, say, sum_up
from thinwire.errors import FlightError

__all__ = ["Channel", "Event", "Launch", "Report", "SimFabric", "Wires", "simulate"]

T = TypeVar("T")
Think = Callable[[int, int], float]
"""Seconds that a rank computes before its n-th hop (and before its end, after the last), from
(rank, n)."""


@dataclass(frozen=True)
class Launch:
    """One flight of all ranks, and when it may start: at one time, or at each rank's own (when its
    bucket is full, say)."""

    flights: Mapping[int, Flight[Any]]
    at: float | Mapping[int, float] = 0.0

    def at_rank(self, rank: int) -> float:
        return self.at.get(rank, 0.0) if isinstance(self.at, Mapping) else self.at


@dataclass(frozen=True, slots=True)
class Event:
    """What a rank did on a lane: "think", "send" (to `peer`, `nbytes`) or "wait", from `begin` to
    `end`."""

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
    """What came of a simulation.

    seconds: when the last rank had done; ends: when each had. ways: the bytes that went through
    each up-link, down-link and channel.
    outcomes: by lane and flight, {rank: outcome}. events: in the order in which they ended.
    """

    ends: dict[int, float] = field(default_factory=dict)
    sent_bytes: dict[int, float] = field(default_factory=dict)
    messages: dict[int, int] = field(default_factory=dict)
    ways: Counter[Hashable] = field(default_factory=Counter)
    outcomes: list[list[dict[int, Any]]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return max(self.ends.values(), default=0.0)

    @property
    def outcome(self) -> dict[int, Any]:
        """Of the one flight that there was."""
        ((only,),) = self.outcomes
        return only


def simulate(
    flights: Mapping[int, Flight[Any]] | Sequence[Sequence[Launch]],
    wires: Wires,
    think: Think | None = None,
) -> Report:
    """Run flights on a virtual clock.

    Args:
        flights: {rank: generator}; or for each lane its launches: those of one lane run one after
            another, lanes side by side.
        wires: what lies between the ranks.
        think: how long a rank computes between hops.

    Raises:
        FlightError: the ranks wait for something that nobody sends, or send what nobody takes, or
            sizes do not match; the message says which ranks.

    Example:
        >>> from thinwire.core import Link, RankContext, Spec
        >>> from thinwire.how import gather
        >>> from thinwire.what import identity
        >>> spec, world = Spec((), 0, 250, torch.float32), (0, 1, 2)
        >>> contexts = [RankContext(rank, world, 0, 0) for rank in world]
        >>> fly = lambda ctx: gather().carry(identity(), torch.ones(250), spec, gather().init(identity(), spec, ctx), ctx)
        >>> told = simulate({ctx.rank: fly(ctx) for ctx in contexts}, Wires(Link(latency_s=0.1, rate_bytes_per_s=1000)))
        >>> round(told.seconds, 6), told.sent_bytes[0], told.messages[0]
        (2.1, 2000.0, 2)
    """
    lanes = [[Launch(flights)]] if isinstance(flights, Mapping) else flights
    return _Simulation(lanes, wires, think).run()


@dataclass(eq=False)
class _Rank:
    """One rank on one lane: its flights one after another, and what it is at."""

    rank: int
    lane: int
    number: int = -1  # of the flight that it is at
    flight: Flight[Any] | None = None
    hops: int = 0
    hop: Any = None
    sends: deque[tuple[int, Any, float]] = field(default_factory=deque)
    waits: tuple[tuple[int, float], ...] = ()
    sending: bool = False
    ring: Iterator[Exchange | _Step] | None = None  # within an all-reduce
    since: float = 0.0


@dataclass(frozen=True)
class _Step:
    """One step of the transport's all-reduce: so many bytes on to the next rank, as many from the
    one before."""

    to: int
    source: int
    nbytes: float


class _Simulation:
    def __init__(
        self, lanes: Sequence[Sequence[Launch]], wires: Wires, think: Think | None
    ) -> None:
        self.lanes, self.wires, self.think = lanes, wires, think
        self.report = Report(outcomes=[[{} for _ in lane] for lane in lanes])
        self.now = 0.0
        self.timers: list[tuple[float, int, Callable[[], None]]] = []
        self.ticks = 0
        self.flows: dict[Flow, Callable[[], None]] = {}
        self.mail: dict[tuple[int, int, int], deque[tuple[Any, float]]] = {}
        self.sums: dict[tuple[int, Ranks], list[dict[int, AllReduce]]] = {}
        self.counts: Counter[tuple[int, int, Ranks]] = Counter()
        self.ranks: dict[tuple[int, int], _Rank] = {}
        self.posted: dict[
            tuple[int, int, int], deque[float]
        ] = {}  # when receives were posted that no message has been sent for
        self.held: dict[
            tuple[int, int, int], Callable[[], None]
        ] = {}  # messages that wait for a receive

    def run(self) -> Report:
        for number, lane in enumerate(self.lanes):
            for rank in sorted({rank for launch in lane for rank in launch.flights}):
                self.report.sent_bytes.setdefault(rank, 0.0)
                self.report.messages.setdefault(rank, 0)
                self.report.ends.setdefault(rank, 0.0)
                self.ranks[number, rank] = _Rank(rank, number)
                self._after(0.0, lambda who=self.ranks[number, rank]: self._next_flight(who))  # type: ignore[misc]
        while self.timers or self.flows:
            self._step()
        self._left_over()
        return self.report

    def _step(self) -> None:
        """To the next thing that happens, and all that happens at that time."""
        share(self.flows)
        leaves = min((flow.left / flow.rate for flow in self.flows), default=float("inf"))
        until = min(self.now + leaves, self.timers[0][0] if self.timers else float("inf"))
        passed, self.now = until - self.now, until
        done = []
        for flow in self.flows:
            flow.left -= flow.rate * passed
            if flow.left <= 1e-9 * flow.size:
                done.append(flow)
        for flow in done:
            self.flows.pop(flow)()
        while self.timers and self.timers[0][0] <= self.now * (1 + 1e-12):
            heapq.heappop(self.timers)[2]()

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        self.ticks += 1  # of equal times the earlier entry comes first, so that runs are alike
        heapq.heappush(self.timers, (self.now + seconds, self.ticks, act))

    # -- a rank's life
    # ------------------------------------------------------------------------------------------------

    def _next_flight(self, who: _Rank) -> None:
        launches = self.lanes[who.lane]
        who.number += 1
        while who.number < len(launches) and who.rank not in launches[who.number].flights:
            who.number += 1
        if who.number == len(launches):
            who.flight = None
            self.report.ends[who.rank] = max(self.report.ends[who.rank], self.now)
            return
        launch = launches[who.number]
        who.flight, who.hops = launch.flights[who.rank], 0
        self._after(max(launch.at_rank(who.rank) - self.now, 0.0), lambda: self._think(who, None))

    def _think(self, who: _Rank, reply: Any) -> None:
        seconds = self.think(who.rank, who.hops) if self.think else 0.0
        if not seconds:
            self._go_on(who, reply)
            return
        begin = self.now

        def done() -> None:
            self._note(who, "think", begin)
            self._go_on(who, reply)

        self._after(seconds, done)

    def _go_on(self, who: _Rank, reply: Any) -> None:
        assert who.flight is not None
        try:
            hop = who.flight.send(reply)
        except StopIteration as stop:
            self.report.outcomes[who.lane][who.number][who.rank] = stop.value
            who.hop = None
            self._next_flight(who)
            return
        who.hop, who.hops = hop, who.hops + 1
        if isinstance(hop, AllReduce):
            self._join(who, hop)
            who.ring = _ring(who.rank, hop)
            self._next_step(who)
        else:
            who.ring = None
            self._exchange(
                who,
                [(to, payload.clone(), float(payload.numel())) for to, payload in hop.send],
                [(at, float(n)) for at, n in hop.recv],
            )

    def _exchange(
        self, who: _Rank, send: Sequence[tuple[int, Any, float]], recv: Sequence[tuple[int, float]]
    ) -> None:
        who.sends = deque((to, payload, n) for to, payload, n in send if n)
        who.waits = tuple(recv)
        for source, nbytes in recv:
            way = (who.lane, source, who.rank)
            if nbytes and way in self.held:
                self._after(self.wires.between(who.rank, source).latency_s, self.held.pop(way))
            elif nbytes:
                self.posted.setdefault(way, deque()).append(self.now)
        self._send(who)

    def _send(self, who: _Rank) -> None:
        """The next of its sends, or on if there are none and all is there."""
        if not who.sends:
            who.sending, who.since = False, self.now
            self._look(who)
            return
        who.sending = True
        to, payload, nbytes = who.sends.popleft()
        link, begin = self.wires.between(who.rank, to), self.now
        most = link.rate_bytes_per_s if who.ring is None else link.windowed(nbytes)
        ways = self.wires.ways(who.rank, to)
        self.report.sent_bytes[who.rank] += nbytes
        self.report.messages[who.rank] += 1
        self.report.ways.update(dict.fromkeys(ways, nbytes))

        def left() -> None:
            self._note(who, "send", begin, to, nbytes)
            self._after(link.latency_s, arrived)
            self._send(who)

        def arrived() -> None:
            self.mail.setdefault((who.lane, who.rank, to), deque()).append((payload, nbytes))
            peer = self.ranks.get((who.lane, to))
            if peer is not None:
                self._look(peer)

        def begun() -> None:
            self.flows[Flow(nbytes, ways, most, nbytes)] = left

        def ready() -> None:
            self._after(link.message_s, begun) if link.message_s else begun()

        way = (who.lane, who.rank, to)
        if not link.waits:
            ready()
        elif self.posted.get(way):
            word = self.posted[way].popleft() + self.wires.between(to, who.rank).latency_s
            self._after(word - self.now, ready) if word > self.now else ready()
        else:
            self.held[way] = ready

    def _look(self, who: _Rank) -> None:
        """On to the next hop, if all that this one waits for is there."""
        if (
            who.hop is None
            or who.sending
            or not all(
                not n or self.mail.get((who.lane, source, who.rank)) for source, n in who.waits
            )
        ):
            return
        got = {source: self._take(who, source, n) for source, n in who.waits}
        self._note(who, "wait", who.since)
        if who.ring is not None:
            self._next_step(who)
            return
        who.sending = True  # nothing more may be taken for this hop
        self._think(who, got)

    def _take(self, who: _Rank, source: int, nbytes: float) -> Any:
        if not nbytes:
            return torch.empty(0, dtype=torch.uint8)
        payload, came = self.mail[who.lane, source, who.rank].popleft()
        if came != nbytes:
            raise FlightError(
                f"rank {who.rank} expects {nbytes:g} bytes from rank {source} and {came:g} came: "
                "their hops crossed"
            )
        return payload

    # -- the transport's all-reduce
    # -----------------------------------------------------------------------------------

    def _join(self, who: _Rank, hop: AllReduce) -> None:
        """Into the n-th sum over this group on this lane, n the same for every rank."""
        meetings = self.sums.setdefault((who.lane, hop.group), [])
        at = self.counts[who.lane, who.rank, hop.group]
        self.counts[who.lane, who.rank, hop.group] += 1
        if at == len(meetings):
            meetings.append({})
        meetings[at][who.rank] = hop
        if len(meetings[at]) == len(hop.group):
            sum_up(
                [meetings[at][rank].tensor for rank in hop.group], hop.group
            )  # nobody has done before the last has come

    def _next_step(self, who: _Rank) -> None:
        assert who.ring is not None
        step = next(who.ring, None)
        if isinstance(step, _Step):
            self._exchange(who, [(step.to, None, step.nbytes)], [(step.source, step.nbytes)])
            return
        who.ring, who.sending = None, True
        self._think(who, who.hop.tensor)

    # -- odds and ends
    # ------------------------------------------------------------------------------------------------

    def _note(
        self, who: _Rank, kind: str, begin: float, peer: int | None = None, nbytes: float = 0.0
    ) -> None:
        if self.now > begin:
            self.report.events.append(
                Event(who.rank, who.lane, who.number, kind, begin, self.now, peer, nbytes)
            )

    def _left_over(self) -> None:
        stuck = [who for who in self.ranks.values() if who.flight is not None]
        if stuck:
            unheard = [
                f"rank {source} has bytes for rank {to}, which does not expect any"
                for _, source, to in self.held
            ]
            waiting = [
                f"rank {who.rank} waits in {say(who.hop)}"
                for who in stuck
                if any(n for _, n in who.waits)
            ]
            raise FlightError(f"no rank can go on: {'; '.join((*waiting, *unheard))}")
        left = [
            f"{sum(n for _, n in box):g} bytes from rank {source} to rank {to}"
            for (_, source, to), box in sorted(self.mail.items())
            if box
        ]
        if left:
            raise FlightError(
                f"all ranks are done and nobody took {', '.join(left)}: their hops crossed"
            )


def _ring(rank: int, hop: AllReduce) -> Iterator[_Step]:
    world, at = len(hop.group), hop.group.index(rank)
    nbytes = hop.tensor.numel() * hop.tensor.dtype.itemsize
    if not nbytes or world == 1:
        return
    step = _Step(
        hop.group[(at + 1) % world],
        hop.group[at - 1],
        allreduce_nbytes(nbytes, world) / (2 * (world - 1)),
    )
    for _ in range(2 * (world - 1)):
        yield step


class SimFabric(Fabric):
    """A world of ranks in one process, on wires: give `fabric.driver(rank)` to the engine of each
    thread, as of a `Fabric`.

    Each flight is simulated by itself, from its start on all ranks; its `wire_s` is in virtual
    seconds. `clock_s` is, for each lane, the sum of its flights' so far.
    """

    def __init__(
        self, world: int, wires: Wires, timeout: timedelta = timedelta(seconds=30)
    ) -> None:
        super().__init__(world, timeout)
        self.wires = wires
        self.clock_s: dict[int, float] = {}

    def carry(
        self,
        flights: Mapping[int, Flight[T]],
        sent: dict[int, float],
        seconds: dict[int, float],
        lane: int,
    ) -> dict[int, T]:
        report = simulate(flights, self.wires)
        sent.update(report.sent_bytes)
        seconds.update(report.ends)
        self.clock_s[lane] = self.clock_s.get(lane, 0.0) + report.seconds
        return report.outcome
