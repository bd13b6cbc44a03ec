"""What a lab is made of: hosts on switches, links between switches, and what changes as time goes
by.

A `Network` is plain data. What holds at a second is a pure function of it, `Network.at(second)`, so
the clock that applies a schedule decides nothing, and a test needs no network. Two hosts see a
round trip of

    rtt(a, b) = base + sum over the links between their switches,

jitter alike, and a share of packets lost each way of 1 - Π (1 - loss); a `Pair` overrides all
three.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise

from thinwire.errors import LabError

SWITCH = "switch"
MOST_HOSTS = 64
MOST_QUEUED = (1 << 32) - 1  # bytes that tc's token bucket can hold back
Ends = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Wire:
    """What packets between two ends meet. rtt and jitter: seconds, there and back; loss: the share
    lost each way.

    Jitter is drawn for each packet, each way, between 0 and jitter / 2 on top of rtt / 2; packets
    keep their order, but by netem.
    """

    rtt: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0

    @property
    def bare(self) -> bool:
        """Whether packets pass as they are."""
        return not (self.rtt or self.jitter or self.loss)

    def then(self, other: Wire) -> Wire:
        """One after the other."""
        return Wire(
            self.rtt + other.rtt, self.jitter + other.jitter, 1 - (1 - self.loss) * (1 - other.loss)
        )


@dataclass(frozen=True, slots=True)
class Host:
    """A host. up, down: of its own link, bits per second (None: as fast as this machine); slow: 2.0
    halves its CPU."""

    name: str
    up: float | None = None
    down: float | None = None
    switch: str = SWITCH
    slow: float = 1.0


@dataclass(frozen=True, slots=True)
class Link:
    """Two switches joined. up: bits per second from the first to the second, down: back."""

    between: Ends
    up: float | None = None
    down: float | None = None
    wire: Wire = Wire()


@dataclass(frozen=True, slots=True)
class Pair:
    """Two hosts whose wire is set apart from what their path would give."""

    between: Ends
    wire: Wire


@dataclass(frozen=True, slots=True)
class Change:
    """What is otherwise from second `at` on, for `lasts` seconds (None: for good). What is None
    stays.

    hosts: whose own links `up` and `down` change; empty: all hosts'. link, pair: whose rates, or
    wire, change instead.
    cut: hosts that nothing reaches or leaves.
    """

    at: float
    lasts: float | None = None
    hosts: tuple[str, ...] = ()
    link: Ends | None = None
    pair: Ends | None = None
    up: float | None = None
    down: float | None = None
    rtt: float | None = None
    jitter: float | None = None
    loss: float | None = None
    cut: tuple[str, ...] = ()

    def on(self, wire: Wire) -> Wire:
        """A wire after the change."""
        told = {
            name: value
            for name in ("rtt", "jitter", "loss")
            if (value := getattr(self, name)) is not None
        }
        return replace(wire, **told)


@dataclass(frozen=True, slots=True)
class Network:
    """Hosts and what joins them.

    Args:
        hosts: at least one.
        links: between switches; with the hosts' own links they must make one tree.
        wire: between any two hosts, whatever their switches; links come on top.
        pairs: hosts whose wire is set by hand.
        changes: the schedule.
        congestion: TCP's congestion control on every host.
        queue: seconds of traffic that a full link holds back before it drops.
        mtu: bytes of the largest packet.
        seed: of loss and jitter.
        sysctl: kernel settings `net.*` of every host, such as
            {"net.ipv4.tcp_slow_start_after_idle": "0"}.

    Raises:
        LabError: it contradicts itself; all reasons at once.

    Example:
        >>> network = uniform(4, rate=100e6, wire=Wire(rtt=0.05))
        >>> network.between("host0", "host3")
        Wire(rtt=0.05, jitter=0.0, loss=0.0)
    """

    hosts: tuple[Host, ...]
    links: tuple[Link, ...] = ()
    wire: Wire = Wire()
    pairs: tuple[Pair, ...] = ()
    changes: tuple[Change, ...] = ()
    congestion: str = "cubic"
    queue: float = 0.2
    mtu: int = 1500
    seed: int = 0
    sysctl: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if reasons := list(_wrong(self)):
            raise LabError("\n".join(reasons))

    @property
    def names(self) -> tuple[str, ...]:
        """The hosts' names, by rank."""
        return tuple(host.name for host in self.hosts)

    @property
    def switches(self) -> tuple[str, ...]:
        """Every switch, in the order of first use."""
        return tuple(
            dict.fromkeys(
                [host.switch for host in self.hosts]
                + [end for link in self.links for end in link.between]
            )
        )

    def groups(self) -> list[list[str]]:
        """Hosts by the switch they are on: the nodes of a network of two levels; with one switch,
        each host is a node."""
        if len({host.switch for host in self.hosts}) == 1:
            return [[name] for name in self.names]
        return [
            there
            for switch in self.switches
            if (there := [host.name for host in self.hosts if host.switch == switch])
        ]

    def between(self, one: str, other: str) -> Wire:
        """What packets between two hosts meet."""
        for pair in self.pairs:
            if set(pair.between) == {one, other}:
                return pair.wire
        at = {host.name: host.switch for host in self.hosts}
        wire = self.wire
        for ends in pairwise(_path(self.links, at[one], at[other])):
            wire = wire.then(
                next(link.wire for link in self.links if set(link.between) == set(ends))
            )
        return wire

    def rate(self, source: str, to: str) -> float | None:
        """Bits per second that one host can send another: the least of the rates on the way; `None`
        where none is set.

        Example:
            >>> two_level(2, 2, inner=10e9, outer=100e6).rate("host0", "host2")
            100000000.0
        """
        there = {host.name: host for host in self.hosts}
        rates = [there[source].up, there[to].down]
        for one, other in pairwise(_path(self.links, there[source].switch, there[to].switch)):
            link = next(link for link in self.links if set(link.between) == {one, other})
            rates.append(link.up if link.between == (one, other) else link.down)
        return min((rate for rate in rates if rate is not None), default=None)

    def moments(self) -> list[float]:
        """The seconds at which something changes."""
        ends = [change.at + change.lasts for change in self.changes if change.lasts is not None]
        return sorted({change.at for change in self.changes} | set(ends))

    def at(self, second: float) -> Network:
        """What holds at a second, without a schedule; see `cut_at` for who is cut off."""
        now = replace(self, changes=())
        for change in self._changes(second):
            now = _changed(now, change)
        return now

    def cut_at(self, second: float) -> frozenset[str]:
        """The hosts that are cut off at a second."""
        return frozenset(name for change in self._changes(second) for name in change.cut)

    def _changes(self, second: float) -> Iterator[Change]:
        for change in sorted(self.changes, key=lambda each: each.at):
            if change.at <= second and (change.lasts is None or second < change.at + change.lasts):
                yield change


def uniform(hosts: int, rate: float | None = None, wire: Wire = Wire(), **more: object) -> Network:
    """Hosts on one switch, alike. rate: bits per second of each host's own link, up and down."""
    return Network(tuple(Host(f"host{i}", rate, rate) for i in range(hosts)), wire=wire, **more)  # type: ignore[arg-type]


def two_level(
    nodes: int,
    per_node: int,
    inner: float | None,
    outer: float | None,
    wire: Wire = Wire(),
    **more: object,
) -> Network:
    """Nodes of `per_node` hosts at rate `inner`, joined through a core at rate `outer`; `wire` is
    met between nodes only.

    Example:
        >>> network = two_level(2, 2, inner=10e9, outer=100e6, wire=Wire(rtt=0.05))
        >>> network.between("host0", "host1").rtt, network.between("host0", "host2").rtt
        (0.0, 0.05)
    """
    hosts = tuple(
        Host(f"host{i}", inner, inner, f"node{i // per_node}") for i in range(nodes * per_node)
    )
    half = Wire(wire.rtt / 2, wire.jitter / 2, 1 - (1 - wire.loss) ** 0.5)
    links = tuple(Link((f"node{node}", "core"), outer, outer, half) for node in range(nodes))
    return Network(hosts, links, **more)  # type: ignore[arg-type]


def _changed(now: Network, change: Change) -> Network:
    rates = {name: value for name in ("up", "down") if (value := getattr(change, name)) is not None}
    if change.link is not None:
        there = set(change.link)
        links = (
            replace(link, **rates, wire=change.on(link.wire))
            if set(link.between) == there
            else link
            for link in now.links
        )
        return replace(now, links=tuple(links))
    if change.pair is not None:
        others = [pair for pair in now.pairs if set(pair.between) != set(change.pair)]
        return replace(
            now, pairs=(*others, Pair(change.pair, change.on(now.between(*change.pair))))
        )
    whose = set(change.hosts or now.names)
    hosts = tuple(replace(host, **rates) if host.name in whose else host for host in now.hosts)
    return replace(now, hosts=hosts, wire=change.on(now.wire))


def _path(links: tuple[Link, ...], begin: str, end: str) -> list[str]:
    """The switches from one to another; empty where there is no way."""
    came: dict[str, str | None] = {begin: None}
    waiting = deque([begin])
    while waiting:
        here = waiting.popleft()
        for link in links:
            if here in link.between:
                there = link.between[link.between[0] == here]
                if there not in came:
                    came[there] = here
                    waiting.append(there)
    path, here_or_none = [], end if end in came else None
    while here_or_none is not None:
        path.append(here_or_none)
        here_or_none = came[here_or_none]
    return path[::-1]


def _wrong(network: Network) -> Iterator[str]:
    names, switches = network.names, network.switches
    if not 1 <= len(names) <= MOST_HOSTS:
        yield f"{len(names)} hosts: there may be 1 to {MOST_HOSTS}"
        return
    for name in dict.fromkeys((*names, *switches)):
        if not (
            name.isascii() and name.replace("-", "").replace("_", "").isalnum() and len(name) <= 30
        ):
            yield f"{name!r} is no name of a host or switch: up to 30 letters, digits, - and _"
    if len(set(names)) < len(names):
        yield f"two hosts have the same name: {', '.join(names)}"
    yield from _wrong_links(network)
    for host in network.hosts:
        if not 1 <= host.slow <= 100:
            yield f"{host.name}: slow={host.slow:g} is not from 1 (as it is) to 100"
    apart: list[Link | Pair] = [*network.links, *network.pairs]
    wires = {"all hosts": network.wire} | {" and ".join(each.between): each.wire for each in apart}
    for whose, wire in wires.items():
        if not (0 <= wire.rtt <= 60 and 0 <= wire.jitter <= 60 and 0 <= wire.loss < 1):
            yield f"{whose}: {wire}: rtt and jitter are from 0 to 60 s, loss is below 100%"
    for ends in [pair.between for pair in network.pairs] + [
        change.pair for change in network.changes if change.pair
    ]:
        if len(set(ends)) < 2 or not set(ends) <= set(names):
            yield f"a pair is two of the hosts {', '.join(names)}, not {' and '.join(ends)}"
    yield from _wrong_changes(network)
    yield from _wrong_settings(network)


def _wrong_settings(network: Network) -> Iterator[str]:
    if not 576 <= network.mtu <= 65535:
        yield f"mtu={network.mtu} is not from 576 to 65535"
    if not 0.001 <= network.queue <= 60:
        yield f"queue={network.queue:g} s is not from 1 ms to 60 s"
    limited: list[Host | Link | Change] = [*network.hosts, *network.links, *network.changes]
    most = max(
        (rate for each in limited for rate in (each.up, each.down) if rate is not None), default=0.0
    )
    if most / 8 * max(network.queue, 0.002) > MOST_QUEUED:  # two milliseconds: twice the bucket
        yield (
            f"queue={network.queue:g} s at {most / 1e9:g} Gb/s is more than the 4.29 GB that tc "
            "holds back: ask for less of either"
        )
    for key in network.sysctl:
        if not key.startswith("net."):
            yield (
                f"sysctl {key} is the whole machine's, not a host's: only net.* can be set in a lab"
            )


def _wrong_links(network: Network) -> Iterator[str]:
    switches = network.switches
    for one, other in combinations(network.links, 2):
        if set(one.between) == set(other.between):
            yield f"two links join {' and '.join(one.between)}: one is enough"
            return
    if any(len(set(link.between)) < 2 for link in network.links):
        yield "a link joins two different switches"
    elif apart := [switch for switch in switches if not _path(network.links, switches[0], switch)]:
        yield f"no link leads from {switches[0]} to {', '.join(apart)}: join them by a link"
    elif len(network.links) > len(switches) - 1:
        yield (
            f"{len(network.links)} links between {len(switches)} switches make a loop: bridges "
            "need a tree"
        )


def _wrong_changes(network: Network) -> Iterator[str]:
    known = set(network.names)
    links = [set(link.between) for link in network.links]
    for change in network.changes:
        when = f"the change at {change.at:g} s"
        if change.at < 0 or (change.lasts is not None and change.lasts <= 0):
            yield f"{when}: it begins at 0 s or later and lasts longer than nothing"
        if missing := sorted({*change.hosts, *change.cut} - known):
            yield f"{when} speaks of {', '.join(missing)}; the hosts are {', '.join(network.names)}"
        if change.link is not None and set(change.link) not in links:
            yield f"{when} speaks of a link between {' and '.join(change.link)}, and there is none"
        if sum(bool(said) for said in (change.hosts, change.link, change.pair)) > 1:
            yield f"{when} speaks of hosts, a link or a pair: of one of them"
        rates, wires = change.up or change.down, [change.rtt, change.jitter, change.loss]
        if change.pair and rates:
            yield f"{when}: a pair has no rate of its own; change a host's or a link's"
        if change.hosts and any(each is not None for each in wires):
            yield f"{when}: rtt, jitter and loss are of a link, a pair or of all; hosts have rates"
        if not (rates or change.cut or any(each is not None for each in wires)):
            yield f"{when} changes nothing"
