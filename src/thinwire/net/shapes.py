"""Build the networks that are asked for most: hosts alike, and nodes of hosts."""

from __future__ import annotations

from typing import Any

from thinwire.net.network import Network
from thinwire.net.parts import Host, Trunk, Wire


def uniform(
    hosts: int, bits_per_s: float | None = None, wire: Wire = Wire(), **more: Any
) -> Network:
    """Return hosts on one switch, alike.

    Args:
        hosts: how many.
        bits_per_s: of each host's own link, up and down.
        wire: between any two of them.
        more: as `Network` takes it.
    """
    return Network(
        tuple(Host(f"host{i}", bits_per_s, bits_per_s) for i in range(hosts)), wire=wire, **more
    )


def two_level(
    nodes: int,
    per_node: int,
    inner_bits_per_s: float | None,
    outer_bits_per_s: float | None,
    wire: Wire = Wire(),
    inner_wire: Wire = Wire(),
    **more: Any,
) -> Network:
    """Return nodes of hosts, joined through a core.

    Args:
        nodes, per_node: how many nodes, and hosts of each.
        inner_bits_per_s: of each host's own link.
        outer_bits_per_s: of each node's link to the core, up and down.
        wire: between nodes, on top of `inner_wire`.
        inner_wire: between any two hosts.
        more: as `Network` takes it.

    Example:
        >>> network = two_level(2, 2, 10e9, 100e6, wire=Wire(latency_s=0.025))
        >>> [network.wire_between(0, to).latency_s for to in (1, 2)]
        [0.0, 0.025]
    """
    hosts = tuple(
        Host(f"host{i}", inner_bits_per_s, inner_bits_per_s, f"node{i // per_node}")
        for i in range(nodes * per_node)
    )
    half = Wire(wire.latency_s / 2, wire.jitter_s / 2, 1 - (1 - wire.loss) ** 0.5)
    trunks = tuple(
        Trunk((f"node{node}", "core"), outer_bits_per_s, outer_bits_per_s, half)
        for node in range(nodes)
    )
    return Network(hosts, trunks, inner_wire, **more)


LOCAL_NETWORK = uniform(2, bits_per_s=1e9, wire=Wire(latency_s=100e-6), message_s=20e-6)
"""What is assumed where nobody has measured: 1 Gb/s."""
