"""Read the network of `thinwire lab` from its flags, or from a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinwire.errors import LabError

if TYPE_CHECKING:
    from thinwire.net import Network

# flags whose values a lab file has under the same key
TABLE = (
    "hosts",
    "rate",
    "up",
    "down",
    "rtt",
    "jitter",
    "loss",
    "congestion",
    "queue",
    "mtu",
    "seed",
)


def network_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that describe a network."""
    wire = parser.add_argument_group("the network")
    wire.add_argument(
        "--file", type=Path, metavar="LAB.toml", help="a lab file, instead of the flags below"
    )
    wire.add_argument("--hosts", type=int, metavar="N", help="default 2")
    wire.add_argument(
        "--rate",
        metavar="RATE",
        help="of each host's link, up and down, such as 100mbit; default: as fast as it goes",
    )
    wire.add_argument("--up", metavar="RATE", help="from a host, or from a node; default --rate")
    wire.add_argument("--down", metavar="RATE", help="to a host, or to a node; default --rate")
    wire.add_argument(
        "--rtt", metavar="TIME", help="there and back between two hosts, such as 50ms"
    )
    wire.add_argument("--jitter", metavar="TIME", help="that a round trip may take longer")
    wire.add_argument("--loss", metavar="SHARE", help="of packets lost each way, such as 0.1%%")
    wire.add_argument(
        "--nodes",
        type=int,
        metavar="N",
        help="hosts stand in so many nodes; --rate, --rtt, … are between nodes",
    )
    wire.add_argument("--inner-rate", metavar="RATE", help="inside a node, such as 10gbit")
    wire.add_argument(
        "--congestion", metavar="NAME", help="TCP's congestion control on every host; default cubic"
    )
    wire.add_argument(
        "--queue",
        metavar="TIME",
        help="of traffic that a full link holds back before it drops; default 200ms",
    )
    wire.add_argument("--mtu", type=int, metavar="BYTES", help="default 1500")
    wire.add_argument(
        "--slow",
        action="append",
        metavar="HOST=TIMES",
        help="a host computes so many times slower; may be repeated",
    )
    wire.add_argument(
        "--sysctl",
        action="append",
        metavar="KEY=VALUE",
        help="a kernel setting net.* of every host; may be repeated",
    )
    wire.add_argument("--seed", type=int, metavar="N", help="of loss and jitter; default 0")


def requested_network(options: argparse.Namespace) -> Network:
    """Return the network of the flags, or of --file.

    Raises:
        NetworkError: it cannot be.
        LabError: the lab cannot emulate it, or flags and a file were given.
    """
    from thinwire.lab import limits

    network = _described(options)
    limits.check(network)
    return network


def _described(options: argparse.Namespace) -> Network:
    from thinwire.net import Wire, network_of, read, two_level, units

    # 1. A file excludes the flags.
    given = {
        name: value
        for name in (*TABLE, "slow", "sysctl", "nodes", "inner_rate")
        if (value := getattr(options, name)) is not None
    }
    if options.file is not None:
        if given:
            raise LabError(
                "--file says what the network is; leave out "
                f"{', '.join('--' + name.replace('_', '-') for name in given)}"
            )
        return read(options.file)
    # 2. A flat network of the flags, by the same reader as a file's.
    if (options.nodes is None) != (options.inner_rate is None):
        raise LabError(
            "--nodes and --inner-rate belong together: the nodes, and the rate inside them; "
            "--rate is then between them"
        )
    table: dict[str, Any] = {name: given[name] for name in TABLE if name in given} | {
        "hosts": 2 if options.hosts is None else options.hosts
    }
    slowed = dict(_pair(text, "--slow HOST=TIMES") for text in options.slow or ())
    table["host"] = {host: {"slow": _number(times)} for host, times in slowed.items()}
    table["sysctl"] = dict(_pair(text, "--sysctl KEY=VALUE") for text in options.sysctl or ())
    flat = network_of(table)
    # 3. Nodes: the inner rate inside, and the flags' rates, delay and loss between them.
    if options.nodes is None:
        return flat
    if options.nodes < 1 or len(flat.hosts) % options.nodes:
        raise LabError(f"--nodes {options.nodes} cannot share {len(flat.hosts)} --hosts evenly")
    try:
        inner = units.bits_per_s(options.inner_rate)
    except ValueError as error:
        raise LabError(f"--inner-rate: {error}") from error
    from dataclasses import replace

    two = two_level(options.nodes, len(flat.hosts) // options.nodes, inner, None, flat.wire)
    hosts = tuple(
        replace(host, slow=other.slow) for host, other in zip(two.hosts, flat.hosts, strict=True)
    )
    first = flat.hosts[0]
    trunks = tuple(
        replace(trunk, up_bits_per_s=first.up_bits_per_s, down_bits_per_s=first.down_bits_per_s)
        for trunk in two.trunks
    )
    return replace(flat, hosts=hosts, trunks=trunks, wire=Wire())


def _pair(text: str, form: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise LabError(f"{text!r} is not {form}")
    return key, value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise LabError(f"--slow: {text!r} is no number") from None
