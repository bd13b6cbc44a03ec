"""A simulated network that a link describes: hosts alike, as `simulate` and `SimFabric` take it."""

from __future__ import annotations

from thinwire.net import Link, Network, Transport, Wire, uniform

HOSTS = 16


def wires(link: Link, hosts: int = HOSTS) -> tuple[Network, Transport]:
    """Return the network on which every way between two hosts is this link, and its transport."""
    network = uniform(
        hosts, 8 * link.rate_bytes_per_s, Wire(link.latency_s), message_s=link.message_s
    )
    return network, Transport(link.window_bytes, link.waits)
