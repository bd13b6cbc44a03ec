"""Name the networks that a bench sweeps, and write them into records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from thinwire.errors import BenchError
from thinwire.lab import Lab
from thinwire.net import Network, Wire, uniform

NO_LIMITS = "no limits"


@dataclass(frozen=True)
class NamedNetwork:
    """Give a network of hosts that are alike the name that records and pages know it by.

    Raises:
        BenchError: its hosts are not alike, which a record cannot say.
    """

    name: str
    network: Network

    def __post_init__(self) -> None:
        network, first = self.network, self.network.hosts[0]
        alike = uniform(
            len(network.hosts),
            first.up_bits_per_s,
            Wire(network.wire.latency_s, loss=network.wire.loss),
            congestion=network.congestion,
        )
        if network.trunks or network != alike:
            raise BenchError(
                f"{self.name}: a bench's record has one rate, round trip and loss for all hosts: "
                "take hosts that are alike, on one switch, without jitter or changes"
            )

    @property
    def bits_per_s(self) -> float | None:
        """Return the rate of each host's link; `None` where nothing limits it."""
        return self.network.hosts[0].up_bits_per_s

    def lab(self) -> Lab:
        """Return the hosts, emulated."""
        return Lab(self.network)

    def record(self) -> dict[str, Any]:
        """Return a link's fields of a record; `rtt` is in seconds, there and back."""
        return {
            "name": self.name,
            "rate": self.bits_per_s,
            "rtt": 2 * self.network.wire.latency_s,
            "loss": self.network.wire.loss,
            "congestion": self.network.congestion,
        }


def no_limits(world: int) -> NamedNetwork:
    """Return hosts that nothing limits."""
    return NamedNetwork(NO_LIMITS, uniform(world))


def swept(
    world: int, rates_bits_per_s: tuple[float, ...], rtts_s: tuple[float, ...]
) -> tuple[NamedNetwork, ...]:
    """Return a network of `world` hosts for every rate and round trip.

    Example:
        >>> [each.name for each in swept(4, (1e8, 1e9), (0.05,))]
        ['100 Mb/s, 50 ms', '1 Gb/s, 50 ms']
    """
    return tuple(
        NamedNetwork(
            f"{_rate_text(rate)}, {rtt * 1e3:g} ms", uniform(world, rate, Wire(latency_s=rtt / 2))
        )
        for rate in rates_bits_per_s
        for rtt in rtts_s
    )


def _rate_text(bits_per_s: float) -> str:
    if bits_per_s >= 1e9:
        return f"{bits_per_s / 1e9:g} Gb/s"
    return f"{bits_per_s / 1e6:g} Mb/s"
