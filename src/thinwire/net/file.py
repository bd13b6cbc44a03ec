"""Read a network from a TOML file, and write it as one.

Units stand in the values. `rtt` and `jitter` are there and back, as ping shows them; a `Wire` holds
half of each, one way.

hosts = 4                       # or a list of names
rate = "100mbit"                # of each host's own link; up and down where they differ
rtt = "50ms"                    # between any two hosts; jitter and loss alike
congestion = "cubic"

[host.host2]                    # what is different about one
up = "20mbit"
slow = 2.0                      # half a CPU
switch = "east"

[[link]]                        # between switches, on top of the above
between = ["switch", "east"]
rate = "100mbit"
rtt = "40ms"

[[pair]]                        # instead of the above
between = ["host0", "host3"]
loss = "1%"

[[change]]
at = "30s"
rate = "20mbit"

[[change]]
at = "60s"
lasts = "5s"
cut = ["host2"]
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from thinwire.errors import NetworkError
from thinwire.net import values
from thinwire.net.network import Network
from thinwire.net.parts import Change, Host, Pair, Trunk, Wire
from thinwire.text.words import near

Table = Mapping[str, Any]
Reader = Callable[[Any], tuple[str, Any]]
"""Reads a value of a file; returns the field that it sets, and what that becomes."""


def _into(field: str, read: Callable[[Any], Any]) -> Reader:
    return lambda value: (field, read(value))


RATES: dict[str, Reader] = {
    "rate": _into("bits_per_s", values.rate),
    "up": _into("up_bits_per_s", values.rate),
    "down": _into("down_bits_per_s", values.rate),
}
WIRE: dict[str, Reader] = {
    "rtt": _into("latency_s", values.half_time),
    "jitter": _into("jitter_s", values.half_time),
    "loss": _into("loss", values.fraction),
}
HOST = {**RATES, "slow": _into("slow", values.number), "switch": _into("switch", values.text)}
LINK = {"between": _into("between", values.two_names), **RATES, **WIRE}
PAIR = {"between": _into("between", values.two_names), **WIRE}
CHANGE = {
    "at": _into("at_s", values.time),
    "lasts": _into("lasts_s", values.time),
    "hosts": _into("hosts", values.names),
    "link": _into("trunk", values.two_names),
    "pair": _into("pair", values.two_names),
    **RATES,
    **WIRE,
    "cut": _into("cut", values.names),
}
SETTINGS: dict[str, Reader] = {
    "message": _into("message_s", values.time),
    "congestion": _into("congestion", values.text),
    "queue": _into("queue_s", values.time),
    "mtu": _into("mtu_bytes", values.integer),
    "seed": _into("seed", values.integer),
    "sysctl": _into("sysctl", values.texts),
}
TOP = {"hosts": _into("hosts", values.hosts), **RATES, **WIRE, **SETTINGS}
TABLES = ("host", "link", "pair", "change")
WIRE_FIELDS = ("latency_s", "jitter_s", "loss")


def read(path: Path) -> Network:
    """Read the network of a TOML file.

    Raises:
        NetworkError: it cannot be read, or describes what cannot be; all reasons at once.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NetworkError(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise NetworkError(f"{path} is no TOML: {error}") from error
    try:
        return network_of(table)
    except NetworkError as error:
        lines = str(error).splitlines()
        raise NetworkError("\n".join(f"{path}: {line}" for line in lines)) from error


def network_of(table: Table) -> Network:
    """Build a network from the table of a file.

    Raises:
        NetworkError: unknown keys, wrong values, or a network that contradicts itself.

    Example:
        >>> network_of({"hosts": 2, "rate": "1gbit", "rtt": "20ms"}).wire_between(0, 1).latency_s
        0.01
    """
    reasons: list[str] = []

    # 1. Read every table; gather all that is wrong.
    own = {key: value for key, value in table.items() if key not in TABLES}
    top = _fields("", own, TOP, reasons, also=TABLES)
    names = top.pop("hosts", ())
    if "hosts" not in table:
        reasons.append("hosts is missing: a number, or a list of names")
    differences = {
        name: _fields(f"host.{name}: ", each, HOST, reasons)
        for name, each in _tables(table, "host", dict, reasons)
    }
    if unknown := sorted(set(differences) - set(names)):
        reasons.append(f"host.{unknown[0]} is none of the hosts{near(unknown[0], names)}")
    links = _list(table, "link", LINK, reasons, "between")
    pairs = _list(table, "pair", PAIR, reasons, "between")
    changes = _list(table, "change", CHANGE, reasons, "at")
    for each in pairs:
        ends = each.get("between", ())
        if not set(ends) <= set(names):
            reasons.append(
                f"a pair is two of the hosts {', '.join(names)}, not {' and '.join(ends)}"
            )
    if reasons:
        raise NetworkError("\n".join(reasons))

    # 2. Build hosts and links: a host has what all have, but for what is different about it.
    rates, wire = _take_rates(top), _take_wire(top)
    hosts = []
    for name in names:
        own = differences.get(name, {})
        hosts.append(Host(name, **(rates | _take_rates(own) | own)))
    trunks = [Trunk(wire=_take_wire(each), **_take_rates(each), **each) for each in links]
    base = Network(tuple(hosts), tuple(trunks), wire, **top)

    # 3. A pair keeps, of what its path gives, what it does not set.
    set_by_hand = []
    for each in pairs:
        ends = each.pop("between")
        set_by_hand.append(Pair(ends, Change(0, **each).applied(base.wire_between(*ends))))
    return Network(
        base.hosts,
        base.trunks,
        wire,
        tuple(set_by_hand),
        tuple(Change(**_take_rates(each), **each) for each in changes),
        **top,
    )


def table_of(network: Network) -> dict[str, Any]:
    """Return the table of a file that `network_of` reads back to the same network."""
    table: dict[str, Any] = {
        "hosts": list(network.names),
        **_wire_table(network.wire, usual=Wire()),
        "congestion": network.congestion,
        "queue": values.time_text(network.queue_s),
        "mtu": network.mtu_bytes,
        "seed": network.seed,
    }
    if network.message_s:
        table["message"] = values.time_text(network.message_s)
    if network.sysctl:
        table["sysctl"] = dict(network.sysctl)
    table["host"] = {host.name: _host_table(host) for host in network.hosts}
    table["link"] = [
        {
            "between": list(trunk.between),
            **_rate_table(trunk),
            **_wire_table(trunk.wire, usual=Wire()),
        }
        for trunk in network.trunks
    ]
    table["pair"] = [
        {"between": list(pair.between), **_wire_table(pair.wire)} for pair in network.pairs
    ]
    table["change"] = [_change_table(change) for change in network.changes]
    # What is empty is left out, as the file would leave it out.
    return {key: value for key, value in table.items() if value not in ([], {})}


def _host_table(host: Host) -> dict[str, Any]:
    slowed = {"slow": host.slow} if host.slow != 1 else {}
    return {**_rate_table(host), "switch": host.switch, **slowed}


def _change_table(change: Change) -> dict[str, Any]:
    table: dict[str, Any] = {"at": values.time_text(change.at_s)}
    if change.lasts_s is not None:
        table["lasts"] = values.time_text(change.lasts_s)
    for key, value in (
        ("hosts", change.hosts),
        ("link", change.trunk),
        ("pair", change.pair),
        ("cut", change.cut),
    ):
        if value:
            table[key] = list(value)
    # The wire's fields that the change sets, as it sets them on a wire without any.
    texts = _wire_table(change.applied(Wire()))
    fields = dict(zip(WIRE, WIRE_FIELDS, strict=True))
    table |= {key: text for key, text in texts.items() if fields[key] in change.wires}
    return table | _rate_table(change)


def _rate_table(each: Host | Trunk | Change) -> dict[str, str]:
    rates = {"up": each.up_bits_per_s, "down": each.down_bits_per_s}
    return {key: values.rate_text(rate) for key, rate in rates.items() if rate is not None}


def _wire_table(wire: Wire, usual: Wire | None = None) -> dict[str, str]:
    """Return what a file has of a wire; with `usual`, only what differs from that."""
    texts = {
        "rtt": values.time_text(2 * wire.latency_s),
        "jitter": values.time_text(2 * wire.jitter_s),
        "loss": values.fraction_text(wire.loss),
    }
    return {
        key: text
        for (key, text), field in zip(texts.items(), WIRE_FIELDS, strict=True)
        if usual is None or getattr(wire, field) != getattr(usual, field)
    }


def _take_rates(fields: dict[str, Any]) -> dict[str, Any]:
    """Take the rates out of some fields: `rate` is up and down, where these are not given."""
    rate = fields.pop("bits_per_s", None)
    both = {} if rate is None else {"up_bits_per_s": rate, "down_bits_per_s": rate}
    single = ("up_bits_per_s", "down_bits_per_s")
    return both | {key: fields.pop(key) for key in single if key in fields}


def _take_wire(fields: dict[str, Any]) -> Wire:
    """Take what is a wire's out of some fields."""
    return Wire(**{key: fields.pop(key) for key in WIRE_FIELDS if key in fields})


def _list(
    table: Table, name: str, readers: Mapping[str, Reader], reasons: list[str], needed: str
) -> list[dict[str, Any]]:
    return [
        _fields(f"{name} {number}: ", each, readers, reasons, needed)
        for number, each in _tables(table, name, list, reasons)
    ]


def _tables(table: Table, name: str, kind: Any, reasons: list[str]) -> Iterator[tuple[Any, Table]]:
    """Yield the tables under a name: by their own names, or by their number."""
    there: Any = table.get(name, kind())
    if not isinstance(there, kind):
        reasons.append(f"{name}: write {'[host.NAME]' if kind is dict else f'[[{name}]]'}")
        return
    pairs: Any = there.items() if isinstance(there, dict) else enumerate(there, 1)
    for key, each in pairs:
        if isinstance(each, dict):
            yield key, each
        else:
            reasons.append(f"{name} {key}: expected a table, got {each!r}")


def _fields(
    where: str,
    table: Table,
    readers: Mapping[str, Reader],
    reasons: list[str],
    needed: str | None = None,
    also: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Read a table's values into fields; add what is wrong, or missing, to `reasons`."""
    fields = {}
    for key, value in table.items():
        if key not in readers:
            there = (*readers, *also)
            reasons.append(
                f"{where}no key is called {key!r}{near(key, there)} There are: {', '.join(there)}"
            )
            continue
        try:
            field, read_value = readers[key](value)
        except ValueError as error:
            reasons.append(f"{where}{key}: {error}")
        else:
            fields[field] = read_value
    if needed is not None and needed not in table:
        reasons.append(f"{where}{needed} is missing")
    return fields
