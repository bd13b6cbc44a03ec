"""Hold what a network is made of: hosts, trunks between switches, and what packets meet on the way.

All of it is plain data. Latency and jitter are seconds one way; a round trip is twice that. Loss is
a fraction of the packets, each way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

SWITCH = "switch"
Ends = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Wire:
    """Describe what packets meet between two points, each way.

    Jitter is drawn for each packet, between 0 and `jitter_s`, on top of `latency_s`.
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0

    @property
    def bare(self) -> bool:
        """Return whether packets pass as they are."""
        return not (self.latency_s or self.jitter_s or self.loss)

    def then(self, other: Wire) -> Wire:
        """Return this wire and another, one after the other.

        Example:
            >>> Wire(0.01, loss=0.5).then(Wire(0.02, loss=0.5))
            Wire(latency_s=0.03, jitter_s=0.0, loss=0.75)
        """
        return Wire(
            self.latency_s + other.latency_s,
            self.jitter_s + other.jitter_s,
            1 - (1 - self.loss) * (1 - other.loss),
        )

    def problem(self) -> str | None:
        """Return why packets cannot meet this, or `None`."""
        if 0 <= self.latency_s <= 30 and 0 <= self.jitter_s <= 30 and 0 <= self.loss < 1:
            return None
        return f"{self}: rtt and jitter are from 0 to 60 s there and back, loss is below 100%"


@dataclass(frozen=True, slots=True)
class Host:
    """Describe a host.

    Args:
        name: letters, digits, - and _.
        up_bits_per_s, down_bits_per_s: of its own link; `None`: as fast as it goes.
        switch: what it is joined to.
        slow: how many times slower its CPU is.
    """

    name: str
    up_bits_per_s: float | None = None
    down_bits_per_s: float | None = None
    switch: str = SWITCH
    slow: float = 1.0


@dataclass(frozen=True, slots=True)
class Trunk:
    """Join two switches. up: from the first to the second, down: back."""

    between: Ends
    up_bits_per_s: float | None = None
    down_bits_per_s: float | None = None
    wire: Wire = Wire()


@dataclass(frozen=True, slots=True)
class Pair:
    """Set what two hosts meet, whatever their path would give."""

    between: Ends
    wire: Wire


@dataclass(frozen=True, slots=True)
class Change:
    """Change the network from a second on; a field that is `None` stays as it is.

    Args:
        at_s: seconds after the start.
        lasts_s: how long; `None`: for good.
        hosts: whose own rates change; empty: all hosts'.
        trunk, pair: whose rates, or wire, change instead.
        up_bits_per_s, down_bits_per_s, latency_s, jitter_s, loss: the new values.
        cut: hosts that nothing reaches or leaves.
    """

    at_s: float
    lasts_s: float | None = None
    hosts: tuple[str, ...] = ()
    trunk: Ends | None = None
    pair: Ends | None = None
    up_bits_per_s: float | None = None
    down_bits_per_s: float | None = None
    latency_s: float | None = None
    jitter_s: float | None = None
    loss: float | None = None
    cut: tuple[str, ...] = ()

    @property
    def rates(self) -> dict[str, Any]:
        """Return the rates that it sets, by field."""
        return self._set("up_bits_per_s", "down_bits_per_s")

    @property
    def wires(self) -> dict[str, Any]:
        """Return what it sets of a wire, by field."""
        return self._set("latency_s", "jitter_s", "loss")

    def applied(self, wire: Wire) -> Wire:
        """Return a wire after the change."""
        return replace(wire, **self.wires)

    def holds(self, second: float) -> bool:
        """Return whether it is in force at a second."""
        return self.at_s <= second and (self.lasts_s is None or second < self.at_s + self.lasts_s)

    def _set(self, *names: str) -> dict[str, Any]:
        return {name: value for name in names if (value := getattr(self, name)) is not None}
