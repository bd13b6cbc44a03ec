"""Count bytes and seconds by bucket and stage, for `sync.report()`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from thinwire.core import Handle, allreduce_nbytes

SAMPLED = 8
"""Of so many launches one has its gradients timed."""


@dataclass
class Row:
    """A bucket's bytes and seconds.

    flights: slices carried; sent_bytes: handed to the wire by this rank; encode_s: processor time
    of codecs and routes;
    wire_s: in hops; exposed_s: the caller waited; carry_s: processor time of the lane in hops.
    route: what `auto` has chosen; empty where there was no choice.
    """

    name: str
    numel: int
    flights: int = 0
    sent_bytes: float = 0.0
    encode_s: float = 0.0
    wire_s: float = 0.0
    exposed_s: float = 0.0
    route: str = ""
    carry_s: float = 0.0

    def add(self, handle: Handle[Any]) -> None:
        self.flights += 1
        self.sent_bytes += handle.sent_bytes
        self.encode_s += handle.encode_s
        self.wire_s += handle.wire_s
        self.carry_s += handle.carry_s


PROBE, FIRST_WEIGHTS, START = "link probe", "first weights", "agreeing at the start"
ONCE = (PROBE, FIRST_WEIGHTS, START)
"""What is sent once, when ranks meet: it weighs less the longer a run is."""
CAUSES = {
    "measuring the link": PROBE,
    "parameters and buffers": FIRST_WEIGHTS,
    "attach:": START,
    "switch:": "switches of strategy",
    "resume:": START,
    "common weights": "common weights",
    "validation": "validation",
    "buffers": "buffers",
    "check": "checks",
    "vote": "votes",
    "weight": "weights of ranks",
    "speeds": "speeds of ranks",
    "status of the launch": "status of launches",
    "without gradients": "status of launches",
    "not finite": "status of launches",
}
"""What is sent outside the schedule, by words of the label under which it goes; the first that
fits."""


def cause(label: str) -> str:
    """Return what bytes outside the schedule are sent for, by the label of their flight.

    Example:
        >>> cause("attach: measuring the link"), cause("step 7: validation"), cause("the end")
        ('link probe', 'validation', 'other')
    """
    return next((name for words, name in CAUSES.items() if words in label), "other")


@dataclass
class Meter:
    """A meter: all rows, the steps so far, and the bytes outside the schedule, by cause."""

    world: int
    rows: list[Row] = field(default_factory=list)
    steps: int = 0
    around: dict[str, float] = field(default_factory=dict)
    lane_plan: str = ""
    skipped: int = 0
    checks: str = ""
    remeasured: list[str] = field(default_factory=list)
    """Each time that the link was measured anew, in a sentence."""
    beside_s: float = 0.0
    """Processor time of the loop's own thread in the engine: buckets filled, read and written,
    copies, finite checks."""
    transport_s: Callable[[], float] = float
    """Returns the processor time of the transport's own threads."""
    transport_before_s: float = 0.0
    """Of that, what was spent before the first step, or came from a checkpoint (below 0)."""
    timed: bool = False
    """Whether the gradients of this launch are timed one by one: of the first, the second and every
    eighth after that."""
    _within: bool = False
    _launches: int = 0
    _first_s: float = 0.0
    _some_s: float = 0.0
    _some: int = 0

    def launched(self) -> None:
        """Count a backward pass that launches. Timing each gradient of each would cost more than it
        shows."""
        self._launches += 1
        # The first launch is counted by itself: it is slower, so it must not weigh in the mean of
        # the others.
        self.timed = self._launches == 1 or self._launches % SAMPLED == 2
        self._some += self.timed and self._launches > 1

    def taken(self, seconds: float) -> None:
        """Add the processor time of one gradient of a launch that is timed."""
        if self._launches == 1:
            self._first_s += seconds
        else:
            self._some_s += seconds

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count the processor time of this thread within the block, once where blocks lie in one
        another."""
        # An inner block adds nothing: the outer one counts its time already.
        if self._within:
            yield
            return
        begun, self._within = time.thread_time(), True
        try:
            yield
        finally:
            self.beside_s += time.thread_time() - begun
            self._within = False

    @property
    def setup_bytes(self) -> float:
        """Return all bytes outside the schedule."""
        return sum(self.around.values())

    def count(self, label: str, nbytes: float) -> None:
        """Add bytes that were sent outside the schedule, under the label of their flight."""
        self.around[cause(label)] = self.around.get(cause(label), 0.0) + nbytes

    def report(self) -> Report:
        # Gradients of the first launch as measured, of the others by the mean of the timed ones.
        takes_s = self._first_s + (
            self._some_s * (self._launches - 1) / self._some if self._some else 0.0
        )
        beside_s, transport_s = (
            self.beside_s + takes_s,
            self.transport_s() - self.transport_before_s,
        )
        # Copies: a report must not change when the run goes on.
        rows = tuple(Row(**vars(row)) for row in self.rows)
        around = dict(self.around)
        return Report(
            self.world,
            self.steps,
            rows,
            self.setup_bytes,
            self.lane_plan,
            around,
            self.skipped,
            beside_s,
            transport_s,
            self.checks,
            tuple(self.remeasured),
        )


@dataclass(frozen=True)
class Report:
    """A report of one rank's bytes and the seconds they took; `print(report)` shows a table.

    Example:
        >>> rows = (Row("bucket 0", numel=1000, flights=10, sent_bytes=4000.0),)
        >>> report = Report(world=2, steps=10, rows=rows, setup_bytes=100.0)
        >>> report.sent_bytes, report.dense_bytes, report.ratio
        (4000.0, 40000.0, 10.0)
    """

    world: int
    steps: int
    rows: tuple[Row, ...]
    setup_bytes: float
    lane_plan: str = ""
    """Lanes and slices, with the seconds that decided, where attach has chosen them."""
    around: Mapping[str, float] = field(default_factory=dict)
    """Of `setup_bytes`, what each cause has sent: the link probe, the first weights, validation,
    checks, …"""
    skipped: int = 0
    """Optimiser steps that were left out on all ranks, since gradients were not finite."""
    beside_s: float = 0.0
    """Processor time beside encode: buckets, reads and writes of the target, copies, finite
    checks."""
    transport_s: float = 0.0
    """Processor time of the transport's own threads since attach; 0 where the system does not
    count it."""
    checks: str = ""
    """How often ranks compare their weights, and what that costs."""
    remeasured: tuple[str, ...] = ()
    """Each time that the link was measured anew, as its speed had left the plan, in a sentence."""

    @property
    def sent_bytes(self) -> float:
        """Return the bytes that this rank's schedule handed to the wire."""
        return sum(row.sent_bytes for row in self.rows)

    @property
    def dense_bytes(self) -> float:
        """Return what dense float32 all-reduces at every step would have sent from this rank."""
        return self.steps * allreduce_nbytes(4 * sum(row.numel for row in self.rows), self.world)

    @property
    def ratio(self) -> float:
        """Return dense_bytes / sent_bytes; infinite where nothing was sent."""
        return self.dense_bytes / self.sent_bytes if self.sent_bytes else float("inf")

    @property
    def cpu_s(self) -> float:
        """Return the processor time of all threads: encode, beside encode, and the wire."""
        return (
            sum(row.encode_s + row.carry_s for row in self.rows) + self.beside_s + self.transport_s
        )

    @property
    def exposed_s(self) -> float:
        return sum(row.exposed_s for row in self.rows)

    def __str__(self) -> str:
        # 1. A row for each bucket.
        lines = [
            f"{'bucket':<12}{'values':>12}{'flights':>9}{'sent MB':>11}"
            f"{'encode s':>10}{'wire s':>9}{'exposed s':>11}"
        ]
        for row in self.rows:
            seconds = f"{row.encode_s:>10.3f}{row.wire_s:>9.3f}{row.exposed_s:>11.3f}"
            route = f"  {row.route}" if row.route else ""
            lines.append(
                f"{row.name:<12}{row.numel:>12,}{row.flights:>9,}"
                f"{row.sent_bytes / 1e6:>11.3f}{seconds}{route}"
            )
        # 2. The sums: of the schedule beside dense float32, and of what goes around it, by cause.
        dense = f"dense fp32 at each of {self.steps} steps: {self.dense_bytes / 1e6:.3f} MB"
        lines.append(
            f"sent {self.sent_bytes / 1e6:.3f} MB ({self.ratio:.1f}x fewer than {dense}) and "
            f"{self.setup_bytes / 1e6:.3f} MB around it"
        )
        if self.setup_bytes:
            parts = sorted(self.around.items(), key=lambda part: -part[1])
            lines.append(
                "around it: " + ", ".join(f"{name} {nbytes / 1e6:.3f} MB" for name, nbytes in parts)
            )
        if self.skipped:
            lines.append(
                f"{self.skipped} optimiser steps were left out: gradients that were not finite"
            )
        # 3. Processor time, by what it was spent on.
        encode, wire = (
            sum(row.encode_s for row in self.rows),
            sum(row.carry_s for row in self.rows) + self.transport_s,
        )
        lines.append(
            f"processor time: encode {encode:.3f} s; beside encode: buckets, residuals, copies "
            f"{self.beside_s:.3f} s; wire {wire:.3f} s"
        )
        return "\n".join([*lines, *filter(None, (self.lane_plan, self.checks, *self.remeasured))])
