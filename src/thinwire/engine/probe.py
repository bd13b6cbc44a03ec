"""Measure the link between ranks at attach, for routes that choose by it: all ranks get the same
numbers.

Steps, on the control lane. Each turn is timed by every rank, and all take the longest time of them:
    1. a byte to the next rank and one from the rank before, a few times over: the least is a round
       trip, or α where nothing waits
    2. a byte to every other rank: the time that this takes more is `message_s` for each
    3. more bytes to the next rank each time, until they take LONG_S, and four times as long as a
       byte, beyond a byte's time and their rate no longer grows (a connection that is new starts
       slowly): the rate, which is what further bytes take beyond fewer ones, as a shaper lets some
       pass at once
    4. the segments that were sent again meanwhile, as the kernel counts them: the loss
All of it ends once BUDGET_S has passed on the slowest rank's wires, or BUDGET_TRIPS times a byte's
time where that is longer. A turn that would take longer than the time left is not begun. On a short
link FEW bytes are enough. Every rank decides by the same numbers, so all measure alike.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from thinwire.core import Driver, Flight, Handle
from thinwire.core.collective import all_gather, all_to_all
from thinwire.drive.segments import segments
from thinwire.engine.agree import context_of
from thinwire.engine.observe.meter import Meter
from thinwire.net import LOCAL_NETWORK, Network, Wire, uniform

T = TypeVar("T")
TURNS = 5
BUDGET_S, BUDGET_TRIPS = 1.0, 20
LONG_S, SHORT_S = 0.05, 0.001
FIRST, FEW, MOST = 1 << 14, 1 << 22, 1 << 25  # bytes
MOST_LOSS = 0.99
GROWS = 1.25  # times the rate of fewer bytes
LABEL = "attach: measuring the link"


def measured(driver: Driver, meter: Meter, device: torch.device) -> Network:
    """Measure the network between ranks and return it, hosts alike, as all ranks see it.

    Every rank calls it alike. It takes a second at most, or 20 round trips where these are longer
    than 50 ms.
    """
    if driver.world == 1:
        return LOCAL_NETWORK
    probe = _Probe(driver, meter, device)
    # 1. α and the cost of a message: what further bytes to further ranks take beyond the first.
    one, all_of_them = probe.byte()
    others = driver.world - 1
    message = (
        max(all_of_them - one, 0.0) / (others - 1)
        if others > 1
        else min(LOCAL_NETWORK.message_s, one / 4)
    )
    # 2. The rate, and what was lost meanwhile.
    sent, resent = segments()
    rate = probe.rate(one)
    if not rate:
        return LOCAL_NETWORK  # ranks of one process: no time passes on their wires
    # 3. The delay, which is in a byte's time twice where a message waits for its answer.
    delay = max(one - message, 0.0) / (1 + driver.transport.waits)
    now_sent, now_resent = segments()
    wire = Wire(latency_s=delay, loss=probe.loss(now_sent - sent, now_resent - resent))
    return uniform(driver.world, bits_per_s=8 * rate, wire=wire, message_s=message)


class _Probe:
    """A rank's turns, and the seconds that its hops took.

    `_here` counts those of this rank, `_passed` those of the slowest when last exchanged.
    """

    def __init__(self, driver: Driver, meter: Meter, device: torch.device) -> None:
        self._driver, self._meter, self._device = driver, meter, device
        self._here = self._passed = 0.0
        self._budget = BUDGET_S

    def byte(self) -> tuple[float, float]:
        """Return the least seconds of a byte to the next rank, and of one to every other."""
        some = tuple(dict.fromkeys((1, self._driver.world - 1)))
        least = [float("inf")] * len(some)
        for turns in (1, TURNS - 1):  # the first shows how long a turn is
            each = [[self._turn(peers, 1) for peers in some] for _ in range(turns)]
            # The longest of all ranks for each turn, then the least of all turns: a turn that a
            # busy host has delayed does not count.
            took = self._agreed([seconds for row in each for seconds in row])
            least = [min(least[i], *took[i :: len(some)]) for i in range(len(some))]
            self._budget = max(BUDGET_S, BUDGET_TRIPS * least[0])
            # Leave half of the budget for the rate.
            if not self._time_for(TURNS * sum(least) + self._budget / 2):
                break
        return least[0], least[-1]

    def rate(self, one: float) -> float:
        """Return bytes a second; 0 where no time passes. one: the seconds of a byte."""
        points, rate = [(1, one)], 0.0
        nbytes = FIRST if one <= LONG_S / 4 else 4 * FIRST
        while True:
            took = self._seconds_of(nbytes, one)
            if not took:
                return 0.0
            points.append((nbytes, took))
            before, rate = rate, _slope(points)
            # More bytes are not slower: look once more whether the moment was busy.
            if nbytes <= FEW and rate < before / GROWS and self._time_for(took + one):
                points[-1] = nbytes, min(took, self._seconds_of(nbytes, one))
                rate = _slope(points)
            if nbytes >= MOST or (nbytes >= FEW and one <= SHORT_S):
                return rate
            # Grow fourfold while the rate grows, or the latency decides, not the bytes.
            long = took - one >= max(LONG_S, 4 * one) and len(points) > 2
            more = min(4 * nbytes, MOST)
            if (long and rate <= GROWS * before) or not self._time_for(more / rate + 2 * one):
                return rate
            nbytes = more

    def loss(self, sent: int, resent: int) -> float:
        """Return the fraction of segments that were sent again, on the rank that lost most."""
        (loss,) = self._agreed([resent / sent if sent else 0.0])
        return min(loss, MOST_LOSS)

    def _seconds_of(self, nbytes: int, one: float) -> float:
        """Return the seconds of a turn with so many bytes, the lesser of two where bytes decide."""
        (took,) = self._agreed([self._turn(1, nbytes)])
        # A busy moment makes one turn slow.
        if nbytes < MOST and took > 2 * one and self._time_for(took + one):
            took = min(took, *self._agreed([self._turn(1, nbytes)]))
        return took

    def _time_for(self, seconds: float) -> bool:
        return self._passed + seconds <= self._budget

    def _turn(self, peers: int, nbytes: int) -> float:
        """Return the seconds that this rank takes to exchange so many bytes with so many others."""
        flight = _exchange(self._driver, self._device, peers, nbytes)
        handle = self._driver.start(flight, self._driver.lanes, LABEL)
        self._wait(handle)
        return handle.wire_s

    def _agreed(self, seconds: list[float]) -> list[float]:
        """Return of each figure the most that any rank has; the seconds that hops took go along."""
        flight = _latest([*seconds, self._here], self._driver, self._device)
        *latest, self._passed = self._wait(self._driver.start(flight, self._driver.lanes, LABEL))
        return latest

    def _wait(self, handle: Handle[T]) -> T:
        result = handle.wait()
        self._here += handle.wire_s
        self._meter.count(LABEL, handle.sent_bytes)
        return result


def _slope(points: Sequence[tuple[int, float]]) -> float:
    """Return the bytes a second that the last bytes took beyond those before.

    At least a tenth of the time counts as theirs, so that noise cannot give an endless rate.

    Example:
        >>> round(_slope([(1, 0.01), (10_001, 0.02), (20_001, 0.03)]))
        1000000
    """
    (fewer, before), (nbytes, took) = points[-2:]
    return (nbytes - fewer) / max(took - before, took / 10)


def _latest(seconds: list[float], driver: Driver, device: torch.device) -> Flight[list[float]]:
    """Return of each figure the most that any rank has."""
    shape = struct.Struct(f"<{len(seconds)}d")
    own = torch.frombuffer(bytearray(shape.pack(*seconds)), dtype=torch.uint8).to(device)
    gathered = yield from all_gather(own, context_of(driver), same_size=True)
    rows = [shape.unpack(each.cpu().numpy().tobytes()) for each in gathered]
    return [max(column) for column in zip(*rows, strict=True)]


def _exchange(
    driver: Driver, device: torch.device, peers: int, nbytes: int
) -> Flight[dict[int, Tensor]]:
    """Send so many bytes to each of the next `peers` ranks, and receive as many from those
    before."""
    ctx = context_of(driver)
    payload = torch.zeros(nbytes, dtype=torch.uint8, device=device)
    return all_to_all(
        dict.fromkeys(ctx.others[:peers], payload),
        ctx,
        nbytes=dict.fromkeys(ctx.others[-peers:], nbytes),
    )
