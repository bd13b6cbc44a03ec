"""A network as a TOML file, there and back.

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

from thinwire.errors import LabError
from thinwire.lab import units
from thinwire.lab.network import Change, Host, Link, Network, Pair, Wire
from thinwire.words import near

Table = Mapping[str, Any]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _said(parse: Callable[[str], Any]) -> Callable[[Any], Any]:
    return lambda value: parse(
        str(value) if isinstance(value, int) and value == 0 else _text(value)
    )


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} is no whole number")
    return value


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"{value!r} is no list of names")
    return tuple(value)


def _two(value: Any) -> tuple[str, ...]:
    if len(_names(value)) != 2:
        raise ValueError(f"{value!r} is not two names")
    return tuple(value)


def _hosts(value: Any) -> tuple[str, ...]:
    return (
        tuple(f"host{i}" for i in range(value))
        if isinstance(value, int) and not isinstance(value, bool)
        else _names(value)
    )


def _texts(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(
        isinstance(each, str | int) for each in value.values()
    ):
        raise ValueError(f"{value!r} is no table of settings")
    return {key: str(each) for key, each in value.items()}


RATES = {"rate": _said(units.rate), "up": _said(units.rate), "down": _said(units.rate)}
WIRE = {"rtt": _said(units.seconds), "jitter": _said(units.seconds), "loss": _said(units.share)}
HOST = {**RATES, "slow": _number, "switch": _text}
LINK = {"between": _two, **RATES, **WIRE}
PAIR = {"between": _two, **WIRE}
CHANGE = {
    "at": _said(units.seconds),
    "lasts": _said(units.seconds),
    "hosts": _names,
    "link": _two,
    "pair": _two,
    **RATES,
    **WIRE,
    "cut": _names,
}
PLAIN = {
    "congestion": _text,
    "queue": _said(units.seconds),
    "mtu": _whole,
    "seed": _whole,
    "sysctl": _texts,
}
TOP = {"hosts": _hosts, **RATES, **WIRE, **PLAIN}
TABLES = ("host", "link", "pair", "change")


def read(path: Path) -> Network:
    """The network of a lab file.

    Raises:
        LabError: it cannot be read, or says what cannot be; all reasons at once.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LabError(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise LabError(f"{path} is no TOML: {error}") from error
    try:
        return network_of(table)
    except LabError as error:
        raise LabError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from error


def network_of(table: Table) -> Network:
    """A network from what a lab file says.

    Raises:
        LabError: unknown keys, wrong values, or a network that contradicts itself.

    Example:
        >>> network_of({"hosts": 2, "rate": "1gbit", "rtt": "20ms"}).between("host0", "host1").rtt
        0.02
    """
    reasons: list[str] = []
    own = {key: value for key, value in table.items() if key not in TABLES}
    told = _values("", own, TOP, reasons, also=TABLES)
    names = told.pop("hosts", ())
    if "hosts" not in table:
        reasons.append("hosts is missing: a number, or a list of names")
    rates = _rates(told)
    differ = {
        name: _values(f"host.{name}: ", each, HOST, reasons)
        for name, each in _tables(table, "host", dict, reasons)
    }
    if unknown := sorted(set(differ) - set(names)):
        reasons.append(f"host.{unknown[0]} is none of the hosts{near(unknown[0], names)}")
    hosts = [
        Host(name, **(rates | _rates(each) | each))
        for name in names
        for each in [differ.get(name, {})]
    ]
    links = [
        _values(f"link {n}: ", each, LINK, reasons, ("between",))
        for n, each in _tables(table, "link", list, reasons)
    ]
    pairs = [
        _values(f"pair {n}: ", each, PAIR, reasons, ("between",))
        for n, each in _tables(table, "pair", list, reasons)
    ]
    changes = [
        _values(f"change {n}: ", each, CHANGE, reasons, ("at",))
        for n, each in _tables(table, "change", list, reasons)
    ]
    if reasons:
        raise LabError("\n".join(reasons))
    base = Network(
        tuple(hosts),
        tuple(Link(wire=_wire(each), **_rates(each), **each) for each in links),
        _wire(told),
        **told,
    )
    apart = tuple(
        Pair(each["between"], Change(0, **each_wire(each)).on(base.between(*each["between"])))
        for each in _known(pairs, names)
    )
    return Network(
        base.hosts,
        base.links,
        base.wire,
        apart,
        tuple(Change(**_rates(each), **each) for each in changes),
        **told,
    )


def each_wire(each: dict[str, Any]) -> dict[str, Any]:
    """Of some values, those that are a wire's."""
    return {key: each[key] for key in WIRE if key in each}


def _known(pairs: list[dict[str, Any]], names: tuple[str, ...]) -> list[dict[str, Any]]:
    for each in pairs:
        if not set(each["between"]) <= set(names):
            raise LabError(
                f"a pair is two of the hosts {', '.join(names)}, not "
                f"{' and '.join(each['between'])}"
            )
    return pairs


def table_of(network: Network) -> dict[str, Any]:
    """What a lab file would say of a network; `network_of` reads it back to the same."""
    told: dict[str, Any] = {
        "hosts": list(network.names),
        **_wire_table(network.wire, Wire()),
        "congestion": network.congestion,
        "queue": units.seconds_words(network.queue),
        "mtu": network.mtu,
        "seed": network.seed,
    }
    if network.sysctl:
        told["sysctl"] = dict(network.sysctl)
    told["host"] = {
        host.name: {
            **_rate_table(host),
            "switch": host.switch,
            **({"slow": host.slow} if host.slow != 1 else {}),
        }
        for host in network.hosts
    }
    told["link"] = [
        {"between": list(link.between), **_rate_table(link), **_wire_table(link.wire, Wire())}
        for link in network.links
    ]
    told["pair"] = [
        {"between": list(pair.between), **_wire_table(pair.wire, None)} for pair in network.pairs
    ]
    told["change"] = [_change_table(change) for change in network.changes]
    return {key: value for key, value in told.items() if value not in ([], {})}


def _change_table(change: Change) -> dict[str, Any]:
    told: dict[str, Any] = {"at": units.seconds_words(change.at)}
    if change.lasts is not None:
        told["lasts"] = units.seconds_words(change.lasts)
    told |= {
        key: list(value)
        for key in ("hosts", "link", "pair", "cut")
        if (value := getattr(change, key))
    }
    words = {"rtt": units.seconds_words, "jitter": units.seconds_words, "loss": units.share_words}
    told |= {
        key: say(value) for key, say in words.items() if (value := getattr(change, key)) is not None
    }
    return told | _rate_table(change)


def _rate_table(each: Host | Link | Change) -> dict[str, str]:
    return {
        key: units.rate_words(value)
        for key in ("up", "down")
        if (value := getattr(each, key)) is not None
    }


def _wire_table(wire: Wire, usual: Wire | None) -> dict[str, str]:
    told = {
        "rtt": units.seconds_words(wire.rtt),
        "jitter": units.seconds_words(wire.jitter),
        "loss": units.share_words(wire.loss),
    }
    return {
        key: value
        for key, value in told.items()
        if usual is None or getattr(wire, key) != getattr(usual, key)
    }


def _rates(told: dict[str, Any]) -> dict[str, Any]:
    """Take `rate` out of some values: it is up and down, where these are not said."""
    rate = told.pop("rate", None)
    both = {} if rate is None else {"up": rate, "down": rate}
    return both | {key: told.pop(key) for key in ("up", "down") if key in told}


def _wire(told: dict[str, Any]) -> Wire:
    return Wire(**{key: told.pop(key) for key in WIRE if key in told})


def _tables(table: Table, name: str, kind: Any, reasons: list[str]) -> Iterator[tuple[Any, Table]]:
    """The tables under a name: by their own names, or by their number."""
    there: Any = table.get(name, kind())
    if not isinstance(there, kind):
        reasons.append(f"{name}: write {'[host.NAME]' if kind is dict else f'[[{name}]]'}")
        return
    pairs: Any = there.items() if isinstance(there, dict) else enumerate(there, 1)
    for key, each in pairs:
        if isinstance(each, dict):
            yield key, each
        else:
            reasons.append(f"{name} {key}: {each!r} is no table")


def _values(
    where: str,
    table: Table,
    known: Mapping[str, Callable[[Any], Any]],
    reasons: list[str],
    needed: tuple[str, ...] = (),
    also: tuple[str, ...] = (),
) -> dict[str, Any]:
    told = {}
    for key, value in table.items():
        if key not in known:
            there = (*known, *also)
            reasons.append(
                f"{where}no key is called {key!r}{near(key, there)} There are: {', '.join(there)}"
            )
            continue
        try:
            told[key] = known[key](value)
        except ValueError as error:
            reasons.append(f"{where}{key}: {error}")
    reasons += [f"{where}{key} is missing" for key in needed if key not in table]
    return told
