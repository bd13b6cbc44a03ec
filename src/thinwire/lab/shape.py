"""Describe a network in the words of `ip`, `tc` and `iptables`: text only, so that it can be read
and tested without a network."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

from thinwire.net import Network, Wire

SUBNET = "10.77.0.0/16"
DEV = "eth0"
IPV6_MTU = 1280  # below it an interface has no IPv6
NETEM_PACKETS = 400_000  # that netem may hold: a gigabit for seconds


def address(rank: int) -> str:
    """Return the address of a host.

    Example:
        >>> address(0), address(63)
        ('10.77.0.1', '10.77.0.64')
    """
    return f"10.77.0.{rank + 1}"


def hosts_file(network: Network) -> str:
    """/etc/hosts: every host by name."""
    lines = [
        f"{form}{address(rank)} {name}"
        for form in ("", "::ffff:")
        for rank, name in enumerate(network.names)
    ]  # torch asks for both
    return "\n".join(["127.0.0.1 localhost", *lines]) + "\n"


def port(rank: int) -> str:
    """Return a host's end on its switch."""
    return f"p{rank}"


def delayer(rank: int) -> str:
    """Return where netem delays what reaches a host. It is no queue below the port's own limit,
    which would then not hold."""
    return f"n{rank}"


def trunk(link: int, end: int) -> str:
    """One end of a link between switches."""
    return f"t{link}{'ab'[end]}"


def bridges(network: Network) -> Iterator[str]:
    """Lines of `ip -batch` that make the switches, and the links between them."""
    bridge = {switch: f"br{i}" for i, switch in enumerate(network.switches)}
    for name in bridge.values():
        yield f"link add {name} mtu {network.mtu_bytes} type bridge mcast_snooping 0"
        yield f"link set {name} up"
    for i, link in enumerate(network.trunks):
        yield (
            f"link add {trunk(i, 0)} mtu {network.mtu_bytes} type veth peer name {trunk(i, 1)} mtu "
            f"{network.mtu_bytes}"
        )
        for end in range(2):
            yield f"link set {trunk(i, end)} master {bridge[link.between[end]]} up"


def ports(network: Network, pids: Mapping[str, int], netem: Container[str] = ()) -> Iterator[str]:
    """Yield lines of `ip -batch` that join the hosts to their switches.

    netem: the hosts that it delays, on a device between port and host.
    """
    # A host that netem delays has a bridge and one more link between its end and the switch's port.
    for rank, host in enumerate(network.hosts):
        end = delayer(rank) if host.name in netem else port(rank)
        yield (
            f"link add {end} mtu {network.mtu_bytes} type veth peer name {DEV} "
            f"mtu {network.mtu_bytes} netns {pids[host.name]}"
        )
        if host.name in netem:
            yield (
                f"link add {port(rank)} mtu {network.mtu_bytes} type veth peer name q{rank} mtu "
                f"{network.mtu_bytes}"
            )
            yield f"link add d{rank} mtu {network.mtu_bytes} type bridge mcast_snooping 0"
            for each in (end, f"q{rank}"):
                yield f"link set {each} master d{rank} up"
            yield f"link set d{rank} up"
        yield joined(network, rank)
        yield f"link set {port(rank)} up"


def joined(network: Network, rank: int) -> str:
    """Return the line that joins a host's port to its switch again."""
    return f"link set {port(rank)} master br{network.switches.index(network.hosts[rank].switch)}"


def inside(network: Network, rank: int) -> Iterator[str]:
    """Lines of `ip -batch` for a host's own side."""
    yield "link set lo up"
    if network.mtu_bytes >= IPV6_MTU:
        yield f"link set {DEV} addrgenmode none"  # no IPv6: it would go round the rules below
    yield f"addr add {address(rank)}/16 dev {DEV} noprefixroute"
    yield f"link set {DEV} up"
    yield f"route replace {SUBNET} dev {DEV} src {address(rank)} congctl {network.congestion}"


def rates(network: Network) -> dict[tuple[str | None, str], float | None]:
    """(host or None for the switches, device): bits per second that it may send."""
    out: dict[tuple[str | None, str], float | None] = {}
    for rank, host in enumerate(network.hosts):
        out[host.name, DEV] = host.up_bits_per_s
        out[None, port(rank)] = host.down_bits_per_s
    for i, link in enumerate(network.trunks):
        out[None, trunk(i, 0)], out[None, trunk(i, 1)] = link.up_bits_per_s, link.down_bits_per_s
    return out


def limited(network: Network, device: str, rate: float | None) -> str:
    """Return the line of `tc -batch` that holds a device to a rate.

    The bucket holds a millisecond of the rate (at least 16 kB): all that a pause can save up for a
    burst.
    """
    if rate is None:
        return f"qdisc del dev {device} root"
    burst = max(16_000, int(rate / 8 * 1e-3), 2 * network.mtu_bytes)
    limit = max(int(rate / 8 * network.queue_s), 2 * burst)
    return (
        f"qdisc replace dev {device} root handle 1: tbf rate {rate:.0f}bit burst {burst} limit "
        f"{limit}"
    )


@dataclass(frozen=True, slots=True)
class Queue:
    """What comes to a host from some others, which meet the same wire at all times. number: its
    class, or its NFQUEUE."""

    to: str
    number: int
    sources: tuple[str, ...]
    lossy: bool


def queues(network: Network) -> list[Queue]:
    """Return every queue that the network needs now or by its schedule."""
    # Sources with the same wires at all times share a queue; what is never delayed or lost needs
    # none.
    times = [network.at(second) for second in (0.0, *network.moments())]
    queues_of_all: list[Queue] = []
    for host in network.names:
        alike: dict[tuple[Wire, ...], list[str]] = {}
        for other in network.names:
            if other != host:
                alike.setdefault(tuple(now.wire_between(other, host) for now in times), []).append(
                    other
                )
        for wires, sources in alike.items():
            if not all(wire.bare for wire in wires):
                queues_of_all.append(
                    Queue(
                        host,
                        len(queues_of_all) + 1,
                        tuple(sources),
                        any(wire.loss for wire in wires),
                    )
                )
    return queues_of_all


def queue_rules(network: Network, queue: Queue) -> list[list[str]]:
    """Commands on the host that send what comes from a queue's sources through it."""
    where = [address(network.names.index(source)) for source in queue.sources]
    return [
        ["-A", "INPUT", "-i", DEV, "-s", each, "-j", "NFQUEUE", "--queue-num", str(queue.number)]
        for each in where
    ]


def netem_tree(network: Network, queues: list[Queue], seeded: bool) -> Iterator[str]:
    """Lines of `tc -batch` by which netem delays what comes to a host from each of the queues'
    sources."""
    device = delayer(network.names.index(queues[0].to))
    yield f"qdisc add dev {device} root handle 10: htb"
    for i, queue in enumerate(queues, 1):
        yield f"class add dev {device} parent 10: classid 10:{i} htb rate 100gbit"
        yield netem(network, queue, i, "add", seeded)
        for source in queue.sources:
            where = address(network.names.index(source))
            yield (
                f"filter add dev {device} parent 10: protocol ip u32 match ip src {where}/32 "
                f"flowid 10:{i}"
            )


def netem(network: Network, queue: Queue, number: int, verb: str, seeded: bool) -> str:
    """Return the line that sets one of them. netem draws uniformly from delay ± jitter."""
    wire = network.wire_between(queue.sources[0], queue.to)
    # netem's jitter is around the delay, a `Wire`'s is on top of it.
    delay, jitter = (wire.latency_s + wire.jitter_s / 2) * 1e6, wire.jitter_s / 2 * 1e6
    settings = (
        f"delay {delay:.0f}us"
        + (f" {jitter:.0f}us" if jitter else "")
        + (f" loss random {wire.loss * 100:.6f}%" if wire.loss else "")
    )
    if seeded:
        # never 0, which tc would leave out
        settings += f" seed {(network.seed << 16 | queue.number) % (1 << 64)}"
    device = delayer(network.names.index(queue.to))
    return (
        f"qdisc {verb} dev {device} parent 10:{number} handle {10 + number}: netem limit "
        f"{NETEM_PACKETS} {settings}"
    )
