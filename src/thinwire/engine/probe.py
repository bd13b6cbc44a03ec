"""Measure the link between ranks at attach, for routes that choose by it: numbers that all ranks agree on.

Steps, on the control lane, each turn timed by every rank and the longest of them taken by all:
    1. a byte to the next rank and one from the rank before, a few times over: the least is a round trip, or α where nothing waits
    2. a byte to every other rank: what it takes more is `message_s` for each
    3. twice as many bytes to the next rank each time, until they take LONG, and four times as long as a byte, beyond a byte's time and
       their rate no longer grows (a connection that is new starts slowly): the rate
"""

from __future__ import annotations

from dataclasses import replace

import torch

from thinwire.core import Driver, Exchange, Flight, Link, Outcome
from thinwire.engine import agree
from thinwire.engine.meter import Meter

TURNS = 5
LONG = 0.05  # seconds
FIRST, MOST = 1 << 16, 1 << 25  # bytes
GROWS = 1.25  # times the rate of half as many bytes


def measured(driver: Driver, meter: Meter, device: torch.device, transport: Link) -> Link:
    """The link as all ranks see it. transport: what is known of it beforehand: its window, and whether a message waits.

    Every rank calls it alike. It takes some round trips and, on a slow link, the time of 320 KiB.
    """
    world = driver.world
    if world == 1:
        return transport

    def turn(peers: int, nbytes: int) -> float:
        """The longest that any rank took to exchange so many bytes with so many."""
        handle = driver.start(_exchange(driver, device, peers, nbytes), driver.lanes, "attach: measuring the link")
        handle.wait()
        meter.setup_bytes += handle.sent_bytes
        return agree.slowest(driver, meter, handle.wire_s, "attach: measuring the link", device)

    one = min(turn(1, 1) for _ in range(TURNS))
    all_of_them = min(turn(world - 1, 1) for _ in range(TURNS)) if world > 2 else one
    message = max(all_of_them - one, 0.0) / (world - 2) if world > 2 else min(transport.message_s, one / 4)

    def rate_of(nbytes: int) -> tuple[float, float]:
        """What so many bytes take beyond a byte's time, and their rate."""
        took = turn(1, nbytes)
        return took - one, nbytes / max(took - one, took / 10) if took else 0.0

    nbytes, before = FIRST, 0.0
    while True:
        beyond, rate = rate_of(nbytes)
        if not rate:
            return transport  # ranks of one process: no time passes on their wires
        if nbytes >= MOST or (beyond >= max(LONG, 4 * one) and rate <= GROWS * before):
            break
        nbytes, before = 2 * nbytes, rate
    rate = max(rate, rate_of(nbytes)[1])  # a busy moment makes one turn slow
    delay = max(one - message, 0.0)
    return replace(transport, latency_s=delay / (1 + transport.waits), rate_bytes_per_s=rate, message_s=message)


def _exchange(driver: Driver, device: torch.device, peers: int, nbytes: int) -> Flight:
    world, rank = driver.world, driver.rank
    payload = torch.zeros(nbytes, dtype=torch.uint8, device=device)
    send = tuple(((rank + k) % world, payload) for k in range(1, peers + 1))
    yield Exchange(send, tuple(((rank - k) % world, nbytes) for k in range(1, peers + 1)))
    return Outcome(torch.empty(0))
