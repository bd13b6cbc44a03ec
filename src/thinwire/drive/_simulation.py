"""Run flights of all ranks on a network and a virtual clock; `sim.simulate` is the way in."""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from thinwire.core import AllReduce, Flight, Ranks, allreduce_nbytes
from thinwire.drive._report import Event, Launch, Report
from thinwire.drive._wires import Flow, Wires, allot
from thinwire.drive.local import describe_wait, sum_up
from thinwire.errors import FlightError

Think = Callable[[int, int], float]
"""Seconds that a rank computes before its n-th hop (and before its end, after the last), from
(rank, n)."""

Way = tuple[int, int, int]  # lane, sender, receiver


@dataclass(frozen=True)
class _RingStep:
    """A step of the transport's all-reduce: so many bytes to the next rank, and from the last."""

    to: int
    source: int
    nbytes: float


@dataclass(eq=False)
class _Rank:
    """A rank on one lane: its flights one after another, and the hop that it is in."""

    rank: int
    lane: int
    number: int = -1  # of the flight that it is in
    flight: Flight[Any] | None = None
    hops: int = 0
    hop: Any = None
    sends: deque[tuple[int, Any, float]] = field(default_factory=deque)
    waits: tuple[tuple[int, float], ...] = ()
    sending: bool = False
    ring: Iterator[_RingStep] | None = None  # within an all-reduce
    waiting_since: float = 0.0


class Simulation:
    """A simulation of lanes of launches; see `sim.simulate`."""

    def __init__(
        self, lanes: Sequence[Sequence[Launch]], wires: Wires, think: Think | None
    ) -> None:
        self.lanes, self.wires, self.think = lanes, wires, think
        self.report = Report(outcomes=[[{} for _ in lane] for lane in lanes])
        self.now = 0.0
        self.ranks: dict[tuple[int, int], _Rank] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_count = 0
        # Messages on their way out, and what to do when the last byte of each has left.
        self._flows: dict[Flow, Callable[[], None]] = {}
        # By way, (payload, bytes) of messages that are there and not taken yet, in order.
        self._arrived: dict[Way, deque[tuple[Any, float]]] = {}
        # By lane and group, each all-reduce so far: {rank: hop}; and how many each rank has joined.
        self._sums: dict[tuple[int, Ranks], list[dict[int, AllReduce]]] = {}
        self._sums_joined: Counter[tuple[int, int, Ranks]] = Counter()
        # where the transport waits: receives that no message was sent for, and messages that wait
        # for a receive
        self._posted: dict[Way, deque[float]] = {}
        self._held_back: dict[Way, Callable[[], None]] = {}

    def run(self) -> Report:
        """Run until nothing happens any more.

        Raises:
            FlightError: ranks wait for one another, or bytes are left that nobody takes.
        """
        # 1. Every rank of every lane begins its first flight.
        for number, lane in enumerate(self.lanes):
            for rank in sorted({rank for launch in lane for rank in launch.flights}):
                self.report.sent_bytes.setdefault(rank, 0.0)
                self.report.messages.setdefault(rank, 0)
                self.report.ends.setdefault(rank, 0.0)
                self.ranks[number, rank] = _Rank(rank, number)
                self._after(0.0, lambda who=self.ranks[number, rank]: self._next_flight(who))  # type: ignore[misc]

        # 2. From event to event.
        while self._timers or self._flows:
            self._step()

        # 3. All flights must have ended, and all bytes been taken.
        self._check_ended()
        return self.report

    def _step(self) -> None:
        """Go on to the next event, and do all that happens at its time."""
        # 1. When does the next message leave, or the next timer end?
        allot(self._flows)
        leaves = min(
            (flow.remaining_bytes / flow.rate_bytes_per_s for flow in self._flows), default=math.inf
        )
        until = min(self.now + leaves, self._timers[0][0] if self._timers else math.inf)

        # 2. Messages move on at their rates until then.
        passed, self.now = until - self.now, until
        for flow in self._flows:
            flow.remaining_bytes -= flow.rate_bytes_per_s * passed
        # A message is out when less than rounding of it remains, or of the time that it takes.
        gone = [
            flow
            for flow in self._flows
            if flow.remaining_bytes <= 1e-9 * flow.nbytes
            or self.now + flow.remaining_bytes / flow.rate_bytes_per_s <= self.now
        ]
        for flow in gone:
            self._flows.pop(flow)()

        # 3. Timers that have ended. Times that differ by rounding alone are the same time.
        while self._timers and self._timers[0][0] <= self.now * (1 + 1e-12):
            heapq.heappop(self._timers)[2]()

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        # the count: of equal times the earlier entry comes first, so that runs are alike
        self._timer_count += 1
        heapq.heappush(self._timers, (self.now + seconds, self._timer_count, act))

    # -- one rank, from flight to flight and from hop to hop

    def _next_flight(self, who: _Rank) -> None:
        launches = self.lanes[who.lane]
        who.number += 1
        # Launches that this rank has no part in are left out.
        while who.number < len(launches) and who.rank not in launches[who.number].flights:
            who.number += 1
        if who.number == len(launches):
            who.flight = None
            self.report.ends[who.rank] = max(self.report.ends[who.rank], self.now)
            return
        launch = launches[who.number]
        who.flight, who.hops = launch.flights[who.rank], 0
        self._after(max(launch.at_rank(who.rank) - self.now, 0.0), lambda: self._compute(who, None))

    def _compute(self, who: _Rank, reply: Any) -> None:
        """Let a rank compute for as long as `think` gives it, then go on with the reply."""
        seconds = self.think(who.rank, who.hops) if self.think else 0.0
        if not seconds:
            self._resume(who, reply)
            return
        begin = self.now

        def done() -> None:
            self._record(who, "think", begin)
            self._resume(who, reply)

        self._after(seconds, done)

    def _resume(self, who: _Rank, reply: Any) -> None:
        """Give a flight the reply to its hop and begin the next one."""
        assert who.flight is not None
        try:
            hop = who.flight.send(reply)
        except StopIteration as stop:
            self.report.outcomes[who.lane][who.number][who.rank] = stop.value
            who.hop = None
            self._next_flight(who)
            return
        # An all-reduce is a ring of exchanges of its own; other hops are one exchange, of copies,
        # as the route may go on to write into what it sends.
        who.hop, who.hops = hop, who.hops + 1
        if isinstance(hop, AllReduce):
            self._join_sum(who, hop)
            who.ring = _ring(who.rank, hop)
            self._next_ring_step(who)
        else:
            who.ring = None
            self._exchange(
                who,
                [(to, payload.clone(), float(payload.numel())) for to, payload in hop.send],
                [(source, float(n)) for source, n in hop.recv],
            )

    # -- an exchange: post receives, send one message after another, wait for all

    def _exchange(
        self, who: _Rank, send: Sequence[tuple[int, Any, float]], recv: Sequence[tuple[int, float]]
    ) -> None:
        who.sends = deque((to, payload, n) for to, payload, n in send if n)
        who.waits = tuple(recv)
        # 1. Post the receives: where a message waits for its receiver, it may begin now.
        for source, nbytes in recv:
            way = (who.lane, source, who.rank)
            if nbytes and way in self._held_back:
                # the word that this rank is ready takes its time to the sender
                word_s = self.wires.between(who.rank, source).latency_s
                self._after(word_s, self._held_back.pop(way))
            elif nbytes:
                self._posted.setdefault(way, deque()).append(self.now)
        # 2. Send, one message after another.
        self._send_next(who)

    def _send_next(self, who: _Rank) -> None:
        """Send a rank's next message; where there is none, wait for what it receives."""
        if not who.sends:
            who.sending, who.waiting_since = False, self.now
            self._go_on_if_all_arrived(who)
            return
        who.sending = True
        to, payload, nbytes = who.sends.popleft()
        link, ways, begin = (
            self.wires.between(who.rank, to),
            self.wires.ways(who.rank, to),
            self.now,
        )
        # An all-reduce goes in the transport's own windows, a message of an exchange at the link's
        # rate.
        most = link.rate_bytes_per_s if who.ring is None else link.windowed(nbytes)
        self.report.sent_bytes[who.rank] += nbytes
        self.report.messages[who.rank] += 1
        self.report.ways.update(dict.fromkeys(ways, nbytes))

        def ready() -> None:  # the receiver is: the message holds its sender for a time
            self._after(link.message_s, leave) if link.message_s else leave()

        def leave() -> None:  # its bytes go out, at the rate that they get
            if most == math.inf:
                left()
            else:
                self._flows[Flow(nbytes, ways, most, nbytes)] = left

        def left() -> None:  # the last byte is out: the next message may follow
            self._record(who, "send", begin, to, nbytes)
            self._after(link.latency_s, arrived)
            self._send_next(who)

        def arrived() -> None:
            self._arrived.setdefault((who.lane, who.rank, to), deque()).append((payload, nbytes))
            peer = self.ranks.get((who.lane, to))
            if peer is not None:
                self._go_on_if_all_arrived(peer)

        way = (who.lane, who.rank, to)
        # Where messages wait, the receiver's word may be on its way; else the message is held back
        # until the receive is posted.
        if not link.waits:
            ready()
        elif self._posted.get(way):
            word = self._posted[way].popleft() + self.wires.between(to, who.rank).latency_s
            self._after(word - self.now, ready) if word > self.now else ready()
        else:
            self._held_back[way] = ready

    def _go_on_if_all_arrived(self, who: _Rank) -> None:
        """Go on to the next hop, if all has left and all that this one waits for is there."""
        if who.hop is None or who.sending:
            return
        if any(
            n and not self._arrived.get((who.lane, source, who.rank)) for source, n in who.waits
        ):
            return
        received = {source: self._take(who, source, n) for source, n in who.waits}
        self._record(who, "wait", who.waiting_since)
        if who.ring is not None:
            self._next_ring_step(who)
            return
        # Nothing more may be taken for this hop: bytes that arrive now are of the next one.
        who.sending = True
        self._compute(who, received)

    def _take(self, who: _Rank, source: int, nbytes: float) -> Any:
        if not nbytes:
            return torch.empty(0, dtype=torch.uint8)
        payload, came = self._arrived[who.lane, source, who.rank].popleft()
        if came != nbytes:
            raise FlightError(
                f"rank {who.rank} expects {nbytes:g} bytes from rank {source} and {came:g} came: "
                "their hops crossed"
            )
        return payload

    # -- the transport's own all-reduce: a ring

    def _join_sum(self, who: _Rank, hop: AllReduce) -> None:
        """Join the n-th sum over this group on this lane, n the same for every rank."""
        sums = self._sums.setdefault((who.lane, hop.group), [])
        number = self._sums_joined[who.lane, who.rank, hop.group]
        self._sums_joined[who.lane, who.rank, hop.group] += 1
        if number == len(sums):
            sums.append({})
        sums[number][who.rank] = hop
        if len(sums[number]) == len(hop.group):
            # no rank is done before the last has come, so none sees the sum too early
            sum_up([sums[number][rank].tensor for rank in hop.group], hop.group)

    def _next_ring_step(self, who: _Rank) -> None:
        assert who.ring is not None
        step = next(who.ring, None)
        if step is not None:
            self._exchange(who, [(step.to, None, step.nbytes)], [(step.source, step.nbytes)])
            return
        who.ring, who.sending = None, True
        self._compute(who, who.hop.tensor)

    # -- the report

    def _record(
        self, who: _Rank, kind: str, begin: float, peer: int | None = None, nbytes: float = 0.0
    ) -> None:
        if self.now > begin:
            self.report.events.append(
                Event(who.rank, who.lane, who.number, kind, begin, self.now, peer, nbytes)
            )

    def _check_ended(self) -> None:
        # 1. Flights that have not ended: say what each rank waits for, and what nobody expects.
        stuck = [who for who in self.ranks.values() if who.flight is not None]
        if stuck:
            unexpected = [
                f"rank {source} has bytes for rank {to}, which does not expect any"
                for _, source, to in self._held_back
            ]
            waiting = [
                f"rank {who.rank} waits in {describe_wait(who.hop)}"
                for who in stuck
                if any(n for _, n in who.waits)
            ]
            raise FlightError(f"no rank can go on: {'; '.join((*waiting, *unexpected))}")
        # 2. Bytes that arrived and were taken by no hop.
        not_taken = [
            f"{sum(n for _, n in payloads):g} bytes from rank {source} to rank {to}"
            for (_, source, to), payloads in sorted(self._arrived.items())
            if payloads
        ]
        if not_taken:
            raise FlightError(
                f"all ranks are done and nobody took {', '.join(not_taken)}: their hops crossed"
            )


def _ring(rank: int, hop: AllReduce) -> Iterator[_RingStep]:
    """Yield the 2 (K-1) steps of a ring all-reduce: reduce-scatter, then all-gather."""
    world, at = len(hop.group), hop.group.index(rank)
    nbytes = hop.tensor.numel() * hop.tensor.dtype.itemsize
    if not nbytes or world == 1:
        return
    steps = 2 * (world - 1)
    step = _RingStep(
        hop.group[(at + 1) % world], hop.group[at - 1], allreduce_nbytes(nbytes, world) / steps
    )
    for _ in range(steps):
        yield step
