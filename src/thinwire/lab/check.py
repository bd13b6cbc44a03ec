"""Check that a lab delivers the requested round trips, rates, losses and slowed CPUs.

All are measured from inside its hosts.

- rtt: the median of TCP ping-pongs of one byte, against rtt + jitter / 2, the mean that packets
  should meet;
- rate: frames that arrive while the sender floods a host by UDP (no congestion control has a say),
  against the least rate on the way;
- loss: numbered UDP packets at half the rate at most, against the fraction requested. Enough are
  sent for the 95 % interval to be a fifth of it; it is judged by the 99.9 % interval, which is
  wider, as many figures are looked at;
- slow: loops of arithmetic on a slowed host over those on the switches, which nothing slows.
"""

from __future__ import annotations

import json
import math
import os
import select
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from thinwire.errors import LabError
from thinwire.lab.brake import PERIOD_S
from thinwire.lab.lab import Lab

PROBE = Path(__file__).with_name("probe.py")
WITHIN = 0.1  # of what was requested, for rates, round trips and slow-downs
SLACK_S = 0.001  # that a round trip may be longer than requested, whatever was requested
FLOOD_S, BEGINNING_S = (
    2.0,
    0.3,
)  # how long a flood lasts, and how much of it may be a burst that was saved up
HEADERS = 14 + 20 + 8  # of a frame that carries a UDP packet
SMALL = 64  # bytes of a counted packet
MOST_A_SECOND, MOST_S = (
    20_000.0,
    20.0,
)  # counted packets; 20,000 a second is what a Python loop can pace
# A measured fraction contradicts a requested one where chance would do so once in 1,000 times.
SURE = 3.29
What = Literal["rtt", "rate", "loss", "slow"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Hold one figure, as requested and as measured.

    low, high: of a fraction, its 95 % interval; n: the number of samples.
    """

    what: What
    source: str
    to: str
    requested: float | None
    measured: float
    ok: bool
    n: int
    low: float | None = None
    high: float | None = None

    def record(self) -> dict[str, Any]:
        """Return the figure as `thinwire lab check --json` prints it; its keys stay as they are."""
        figures = asdict(self)
        return {"asked" if key == "requested" else key: figures[key] for key in figures}


def check(lab: Lab) -> Iterator[Finding]:
    """Measure every host's link once, one pair of each kind of wire, and every slowed host, against
    what holds now.

    Raises:
        LabError: a measurement cannot be made, or there is none to make.
    """
    network = lab.now
    if len(lab.hosts) == 1 and network.hosts[0].slow == 1:
        raise LabError(
            "one host, not slowed: there is nothing to measure; ask for two hosts or more"
        )
    if cut := sorted(lab.cut):
        raise LabError(
            f"{', '.join(cut)} cut off: nothing can be measured; leave out the change that does it"
        )
    # Each host's link once, in a ring; then one pair of each kind of wire and rate.
    ring = (
        [(name, lab.hosts[(rank + 1) % len(lab.hosts)]) for rank, name in enumerate(lab.hosts)]
        if len(lab.hosts) > 1
        else []
    )
    kinds = {
        (network.wire_between(a, b), network.bits_per_s(a, b)): (a, b)
        for a in lab.hosts
        for b in lab.hosts
        if a != b
    }
    for host in lab.hosts:
        serve(lab, host)
    for source, to in dict.fromkeys([*ring, *kinds.values()]):
        yield round_trip(lab, source, to)
        yield rate(lab, source, to)
        yield loss(lab, source, to)
    for each in network.hosts:
        if each.slow > 1:
            yield slow(lab, each.name)


def round_trip(lab: Lab, source: str, to: str) -> Finding:
    """Measure the round trip between two hosts, in seconds."""
    wire = lab.now.wire_between(source, to)
    # Jitter is drawn each way, so its mean is jitter / 2, twice.
    requested = 2 * wire.latency_s + wire.jitter_s
    n = 40 if wire.jitter_s else max(5, min(20, math.ceil(2 / max(requested, 0.1))))
    seconds = statistics.median(_probe(lab, source, "rtt", to, n))
    spread = 6 * wire.jitter_s / math.sqrt(24 * n)  # of a median of so few draws
    # A slowed host answers late.
    asleep = sum(
        PERIOD_S * (1 - 1 / host.slow) for host in lab.now.hosts if host.name in (source, to)
    )
    return Finding(
        "rtt",
        source,
        to,
        requested,
        seconds,
        abs(seconds - requested) <= max(WITHIN * requested, SLACK_S) + spread + asleep,
        n,
    )


def rate(lab: Lab, source: str, to: str) -> Finding:
    """Measure the bits of frames a second that a link carries, lost frames included."""
    requested, size = lab.now.bits_per_s(source, to), lab.now.mtu_bytes - 28
    answer = _probe(lab, source, "flood", to, FLOOD_S, size)
    # The first packets come out of an empty queue, faster than the link: leave them out.
    marks = [
        (at, count) for at, count in answer["marks"] if at >= answer["marks"][0][0] + BEGINNING_S
    ]
    if len(marks) < 2:
        raise LabError(
            f"{source} to {to}: {answer['count']} packets of {answer['sent']} arrived, too few to "
            "tell a rate"
        )
    (begin, first), (end, last) = marks[0], marks[-1]
    # What the wire lost has passed the link as well.
    carried = (last - first) / (1 - lab.now.wire_between(source, to).loss)
    bits_per_s = carried * (size + HEADERS) * 8 / (end - begin)
    return Finding(
        "rate",
        source,
        to,
        requested,
        bits_per_s,
        requested is None or abs(bits_per_s / requested - 1) <= WITHIN,
        last - first,
    )


def loss(lab: Lab, source: str, to: str) -> Finding:
    """Measure the fraction of packets that do not arrive."""
    requested = lab.now.wire_between(source, to).loss
    limit = lab.now.bits_per_s(source, to) or math.inf
    a_second = min(MOST_A_SECOND, limit / 2 / 8 / (SMALL + HEADERS))
    wanted = (1.96 / 0.2) ** 2 * (1 - requested) / requested if requested else 2000
    n = max(200, int(min(wanted, a_second * MOST_S)))
    answer = _probe(lab, source, "count", to, n, SMALL, a_second)
    lost = n - answer["count"]
    low, high = interval(lost, n, 1.96)
    least, most = interval(lost, n, SURE)
    return Finding(
        "loss", source, to, requested, lost / n, least <= requested <= most, n, low, high
    )


def slow(lab: Lab, host: str) -> Finding:
    """Measure how many times slower than the switches' space a host computes."""
    requested = next(each.slow for each in lab.now.hosts if each.name == host)
    here = _probe(lab, host, "spin", 1.0)
    there = json.loads(lab.call(None, _command("spin", 1.0)))
    return Finding(
        "slow", host, host, requested, there / here, abs(there / here / requested - 1) <= WITHIN, 1
    )


def interval(hits: int, n: int, z: float) -> tuple[float, float]:
    """Return Wilson's interval of the fraction `hits / n`, at `z` standard deviations.

    Source: E. B. Wilson, 1927.

    Example:
        >>> [round(end, 4) for end in interval(10, 1000, 1.96)]
        [0.0054, 0.0183]
    """
    fraction, square = hits / n, z * z / n
    middle, half = (
        fraction + square / 2,
        z * math.sqrt(fraction * (1 - fraction) / n + square / (4 * n)),
    )
    return (
        max(0.0, (middle - half) / (1 + square)) if hits else 0.0,
        min(1.0, (middle + half) / (1 + square)),
    )


def serve(lab: Lab, host: str) -> None:
    """Let a host answer the others' measurements."""
    here, there = os.pipe()
    try:
        lab.popen(host, _command("serve"), stdout=there, stderr=2)
    finally:
        os.close(there)
    ready = select.select([here], [], [], 10.0)[0] and os.read(here, 16)
    os.close(here)
    if not ready:
        raise LabError(f"{host}: the measuring process did not start")


def _probe(lab: Lab, host: str, *arguments: Any) -> Any:
    return json.loads(lab.call(host, _command(*arguments), timeout=120.0))


def _command(*arguments: Any) -> list[str]:
    return [sys.executable, "-I", str(PROBE), *map(str, arguments)]
