"""Describe hosts, what joins them, and what changes as time goes by.

A `Network` is plain data. What holds at a second is a pure function of it, `Network.at(second)`. On
their way between two hosts packets meet

    latency(a, b) = base + sum over the trunks between their switches,

jitter alike, and a loss of 1 - Π (1 - loss); a `Pair` overrides all three. They pass at the least
of the rates on the way. Rank r is on the r-th host.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from thinwire.errors import NetworkError
from thinwire.net import tree
from thinwire.net.link import Link, Transport
from thinwire.net.parts import Change, Host, Pair, Trunk, Wire


@dataclass(frozen=True, slots=True)
class Network:
    """Describe hosts and what joins them.

    Args:
        hosts: at least one.
        trunks: links between switches; they must make one tree.
        wire: between any two hosts, whatever their switches; trunks come on top.
        pairs: hosts whose wire is set by hand.
        changes: the schedule.
        message_s: seconds that each message holds its sender. The simulator and cost formulas use
            it; the lab's hosts have their own.
        congestion: TCP's congestion control on every host.
        queue_s: seconds of traffic that a full link holds back before it drops.
        mtu_bytes: bytes of the largest packet.
        seed: of loss and jitter.
        sysctl: kernel settings of every host, such as
            {"net.ipv4.tcp_slow_start_after_idle": "0"}.

    Raises:
        NetworkError: it contradicts itself; all reasons at once.

    Example:
        >>> from thinwire.net import uniform
        >>> network = uniform(4, bits_per_s=100e6, wire=Wire(latency_s=0.025))
        >>> network.wire_between("host0", "host3")
        Wire(latency_s=0.025, jitter_s=0.0, loss=0.0)
        >>> network.between(0, 3).seconds(1_250_000)
        0.125
    """

    hosts: tuple[Host, ...]
    trunks: tuple[Trunk, ...] = ()
    wire: Wire = Wire()
    pairs: tuple[Pair, ...] = ()
    changes: tuple[Change, ...] = ()
    message_s: float = 0.0
    congestion: str = "cubic"
    queue_s: float = 0.2
    mtu_bytes: int = 1500
    seed: int = 0
    sysctl: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if reasons := list(_problems(self)):
            raise NetworkError("\n".join(reasons))

    @property
    def names(self) -> tuple[str, ...]:
        """Return the hosts' names, by rank."""
        return tuple(host.name for host in self.hosts)

    @property
    def switches(self) -> tuple[str, ...]:
        """Return every switch, in the order of first use."""
        ends = [end for trunk in self.trunks for end in trunk.between]
        return tuple(dict.fromkeys([host.switch for host in self.hosts] + ends))

    def groups(self) -> list[list[str]]:
        """Return the hosts by the switch they are on: the nodes of a network of two levels.

        With one switch, each host is a node.
        """
        if len({host.switch for host in self.hosts}) == 1:
            return [[name] for name in self.names]
        nodes = [
            [host.name for host in self.hosts if host.switch == switch] for switch in self.switches
        ]
        return [node for node in nodes if node]

    def host(self, who: str | int) -> Host:
        """Return a host by its name or its rank.

        Raises:
            NetworkError: there is none.
        """
        if isinstance(who, str):
            named = {host.name: host for host in self.hosts}
            if who in named:
                return named[who]
            raise NetworkError(f"there is no host {who!r}; there are {', '.join(named)}")
        if not 0 <= who < len(self.hosts):
            raise NetworkError(
                f"rank {who} has no host: the network has {len(self.hosts)}; give one for each rank"
            )
        return self.hosts[who]

    def wire_between(self, source: str | int, to: str | int) -> Wire:
        """Return what packets between two hosts meet, each way."""
        ends = {self.host(source).name, self.host(to).name}
        for pair in self.pairs:
            if set(pair.between) == ends:
                return pair.wire
        wire = self.wire
        for trunk, _ in self._crossed(source, to):
            wire = wire.then(trunk.wire)
        return wire

    def ways(self, source: str | int, to: str | int) -> dict[tuple[str, ...], float | None]:
        """Return what a message from one host to another goes through: bits per second by way.

        Two messages share a way if both go through it in the same direction.

        Example:
            >>> from thinwire.net import two_level
            >>> for way, bits_per_s in two_level(2, 1, 1e9, 1e8).ways(0, 1).items():
            ...     print(way, bits_per_s)
            ('up', 'host0') 1000000000.0
            ('node0', 'core') 100000000.0
            ('core', 'node1') 100000000.0
            ('down', 'host1') 1000000000.0
        """
        sender, receiver = self.host(source), self.host(to)
        ways: dict[tuple[str, ...], float | None] = {("up", sender.name): sender.up_bits_per_s}
        here = sender.switch
        for trunk, rate in self._crossed(source, to):
            there = trunk.between[trunk.between[0] == here]
            ways[here, there] = rate
            here = there
        ways["down", receiver.name] = receiver.down_bits_per_s
        return ways

    def bits_per_s(self, source: str | int, to: str | int) -> float | None:
        """Return the rate at which a host can send to another; `None` where no rate is set.

        Example:
            >>> from thinwire.net import two_level
            >>> two_level(2, 2, inner_bits_per_s=10e9, outer_bits_per_s=100e6).bits_per_s(0, 2)
            100000000.0
        """
        rates = self.ways(source, to).values()
        return min((rate for rate in rates if rate is not None), default=None)

    def between(self, source: str | int, to: str | int, transport: Transport = Transport()) -> Link:
        """Return the alpha-beta view of the way from one host to another.

        Its latency is the mean that packets meet, with half the jitter; not loss, nor queues.
        Where the two are on different switches and the sender has neighbours on its own, the
        link's `inside` is the way to one of them.

        Args:
            source, to: hosts, by name or rank.
            transport: what the driver adds: its window, and whether messages wait.

        Example:
            >>> from thinwire.net import two_level
            >>> link = two_level(2, 2, 10e9, 100e6, Wire(0.025)).between("host0", "host2")
            >>> link.latency_s, link.rate_bytes_per_s, link.inside.rate_bytes_per_s
            (0.025, 12500000.0, 1250000000.0)
        """
        sender, receiver = self.host(source), self.host(to)
        near = [host.name for host in self.hosts if host.switch == sender.switch and host != sender]
        inside = None
        if near and sender.switch != receiver.switch:
            inside = self._link(sender.name, near[0], transport, None)
        return self._link(sender.name, receiver.name, transport, inside)

    def _link(self, source: str, to: str, transport: Transport, inside: Link | None) -> Link:
        wire, rate = self.wire_between(source, to), self.bits_per_s(source, to)
        return Link(
            wire.latency_s + wire.jitter_s / 2,
            math.inf if rate is None else rate / 8,
            self.message_s,
            transport.window_bytes,
            inside,
            transport.waits,
        )

    def moments(self) -> list[float]:
        """Return the seconds at which something changes."""
        ends = [each.at_s + each.lasts_s for each in self.changes if each.lasts_s is not None]
        return sorted({each.at_s for each in self.changes} | set(ends))

    def at(self, second: float) -> Network:
        """Return what holds at a second, without a schedule; `cut_at` has who is cut off."""
        now = replace(self, changes=())
        for change in self._changes(second):
            now = _changed(now, change)
        return now

    def cut_at(self, second: float) -> frozenset[str]:
        """Return the hosts that are cut off at a second."""
        return frozenset(name for change in self._changes(second) for name in change.cut)

    def _changes(self, second: float) -> list[Change]:
        in_order = sorted(self.changes, key=lambda change: change.at_s)
        return [change for change in in_order if change.holds(second)]

    def _crossed(self, source: str | int, to: str | int) -> Iterator[tuple[Trunk, float | None]]:
        return tree.crossed(self.trunks, self.host(source).switch, self.host(to).switch)


def _changed(now: Network, change: Change) -> Network:
    # A change is of one trunk, of one pair, or of hosts; without any of them, of all hosts.
    if change.trunk is not None:
        ends = set(change.trunk)
        trunks = (
            replace(trunk, **change.rates, wire=change.applied(trunk.wire))
            if set(trunk.between) == ends
            else trunk
            for trunk in now.trunks
        )
        return replace(now, trunks=tuple(trunks))
    if change.pair is not None:
        others = [pair for pair in now.pairs if set(pair.between) != set(change.pair)]
        wire = change.applied(now.wire_between(*change.pair))
        return replace(now, pairs=(*others, Pair(change.pair, wire)))
    whose = set(change.hosts or now.names)
    hosts = (replace(host, **change.rates) if host.name in whose else host for host in now.hosts)
    return replace(now, hosts=tuple(hosts), wire=change.applied(now.wire))


def _problems(network: Network) -> Iterator[str]:
    names, switches = network.names, network.switches
    if not names:
        yield "0 hosts: there is at least 1"
        return
    # Names become those of network devices and hosts, so they are short and plain.
    for name in dict.fromkeys((*names, *switches)):
        if not (
            name.isascii() and name.replace("-", "").replace("_", "").isalnum() and len(name) <= 30
        ):
            yield f"{name!r} is no name of a host or switch: up to 30 letters, digits, - and _"
    if len(set(names)) < len(names):
        yield f"two hosts have the same name: {', '.join(names)}"
    yield from tree.problems(network.trunks, switches)
    for host in network.hosts:
        if not 1 <= host.slow <= 100:
            yield f"{host.name}: slow={host.slow:g} is not from 1 (as it is) to 100"
    # Wires of the whole network, of trunks and of pairs are judged alike.
    set_by_hand: list[Trunk | Pair] = [*network.trunks, *network.pairs]
    wires = {"all hosts": network.wire}
    wires |= {" and ".join(each.between): each.wire for each in set_by_hand}
    for whose, wire in wires.items():
        if problem := wire.problem():
            yield f"{whose}: {problem}"
    changed = [change.pair for change in network.changes if change.pair]
    for ends in [pair.between for pair in network.pairs] + changed:
        if len(set(ends)) < 2 or not set(ends) <= set(names):
            yield f"a pair is two of the hosts {', '.join(names)}, not {' and '.join(ends)}"
    for change in network.changes:
        yield from _problems_of(change, network)
    yield from _problems_of_settings(network)


def _problems_of_settings(network: Network) -> Iterator[str]:
    limited: list[Host | Trunk | Change] = [*network.hosts, *network.trunks, *network.changes]
    for each in limited:
        for rate in (each.up_bits_per_s, each.down_bits_per_s):
            if rate is not None and not 0 < rate < math.inf:
                yield f"{each}: a rate is a positive number of bits per second; None for no limit"
    if not 0 <= network.message_s <= 60:
        yield f"message_s={network.message_s:g} is not from 0 to 60 s"
    if not 576 <= network.mtu_bytes <= 65535:
        yield f"mtu={network.mtu_bytes} is not from 576 to 65535"
    if not 0.001 <= network.queue_s <= 60:
        yield f"queue={network.queue_s:g} s is not from 1 ms to 60 s"


def _problems_of(change: Change, network: Network) -> Iterator[str]:
    what = f"the change at {change.at_s:g} s"
    if change.at_s < 0 or (change.lasts_s is not None and change.lasts_s <= 0):
        yield f"{what}: it begins at 0 s or later and lasts longer than nothing"
    if missing := sorted({*change.hosts, *change.cut} - set(network.names)):
        yield f"{what} names {', '.join(missing)}; the hosts are {', '.join(network.names)}"
    trunks = [set(trunk.between) for trunk in network.trunks]
    if change.trunk is not None and set(change.trunk) not in trunks:
        yield f"{what} names a link between {' and '.join(change.trunk)}, and there is none"
    # Each target has fields of its own, so a change is of one of them.
    if sum(bool(target) for target in (change.hosts, change.trunk, change.pair)) > 1:
        yield f"{what} names more than one of hosts, a link and a pair: make a change of each"
    if change.pair and change.rates:
        yield f"{what}: a pair has no rate of its own; change a host's or a link's"
    if change.hosts and change.wires:
        yield f"{what}: rtt, jitter and loss are of a link, a pair or of all; hosts have rates"
    if problem := change.applied(Wire()).problem():
        yield f"{what}: {problem}"
    if not (change.rates or change.cut or change.wires):
        yield f"{what} changes nothing"
