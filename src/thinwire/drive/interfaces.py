"""Find the network interface that leads to an address.

gloo by itself listens where the host's own name resolves, which on many systems is loopback, where
no other machine reaches it.
"""

from __future__ import annotations

import array
import fcntl
import ipaddress
import socket
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thinwire import env
from thinwire.errors import ConfigError

VARIABLE = "GLOO_SOCKET_IFNAME"
RESOLVES_WITHIN_S = 10.0
SIOCGIFCONF = 0x8912  # Linux; it lists an interface's second addresses, too
ENTRY_BYTES, MOST_ENTRIES = 40, 1024  # struct ifreq: 16 bytes of name, then a sockaddr_in
DISCARD = 9  # a port; connecting a UDP socket sends nothing


@dataclass(frozen=True)
class Interface:
    """An interface of this machine with one of its addresses."""

    name: str
    address: str

    def __str__(self) -> str:
        return f"{self.name} ({self.address})"


def addresses() -> dict[str, list[str]]:
    """Return the addresses of each network interface of this machine (Linux).

    Example:
        >>> "127.0.0.1" in addresses()["lo"]
        True
    """
    by_name: dict[str, list[str]] = {name: [] for _, name in socket.if_nameindex()}
    # 1. IPv4: the kernel fills an array of `struct ifreq`, whose pointer and length it is given.
    entries = array.array("B", bytes(MOST_ENTRIES * ENTRY_BYTES))
    question = struct.pack("iP", len(entries), entries.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        filled, _ = struct.unpack("iP", fcntl.ioctl(probe.fileno(), SIOCGIFCONF, question))
    for start in range(0, filled, ENTRY_BYTES):
        entry = entries[start : start + ENTRY_BYTES].tobytes()
        label = entry[:16].partition(b"\0")[0].decode()  # eth0:1 for an alias of eth0
        by_name.setdefault(label.partition(":")[0], []).append(socket.inet_ntoa(entry[20:24]))
    # 2. IPv6: lines of `digits … name`.
    table = Path("/proc/net/if_inet6")  # absent where IPv6 is off
    for line in table.read_text(encoding="ascii").splitlines() if table.exists() else ():
        digits, *_, name = line.split()
        by_name.setdefault(name, []).append(
            socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
        )
    return by_name


def is_loopback(address: str) -> bool:
    """Return whether no other machine reaches a numeric address.

    Example:
        >>> is_loopback("127.0.1.1"), is_loopback("::1"), is_loopback("10.0.0.1")
        (True, True, False)
    """
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def resolve(host: str, what: str) -> list[str]:
    """Return the numeric addresses of a host, as this machine resolves it.

    Args:
        host: a name or a numeric address.
        what: where the user gave it, for the message, such as "MASTER_ADDR".

    Raises:
        ConfigError: it does not resolve, or not within 10 s.

    Example:
        >>> resolve("127.0.0.1", "MASTER_ADDR")
        ['127.0.0.1']
    """
    # `getaddrinfo` has no timeout, so a thread calls it, which may outlive this call.
    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
        except (
            OSError,
            UnicodeError,
        ) as error:  # UnicodeError: a label of no or too many characters
            answers.append(error)

    thread = threading.Thread(target=ask, name="thinwire-resolve", daemon=True)
    thread.start()
    thread.join(RESOLVES_WITHIN_S)
    do = "give the address of rank 0's machine, such as 10.0.0.1, or correct the name"
    if not answers:
        raise ConfigError(
            f"{what}={host}: no name server answered within {RESOLVES_WITHIN_S:g} s; {do}"
        )
    if isinstance(answers[0], Exception):
        why = getattr(answers[0], "strerror", None) or str(answers[0])
        raise ConfigError(f"{what}={host}: this machine cannot resolve it ({why}); {do}")
    return list(dict.fromkeys(str(each[4][0]) for each in answers[0]))


def leading_to(address: str) -> Interface | None:
    """Return the interface that holds a numeric address or that routes to it; `None` where none
    does.

    Example:
        >>> leading_to("127.0.0.1")
        Interface(name='lo', address='127.0.0.1')
    """
    try:
        family, kind, _, _, socket_address = socket.getaddrinfo(
            address, DISCARD, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
        )[0]
        with socket.socket(family, kind) as probe:
            # A UDP socket sends nothing here; the system only chooses a route and its own address.
            probe.connect(socket_address)
            own = str(probe.getsockname()[0]).partition("%")[0]
    except OSError:  # no route
        return None
    holders = [name for name, held in addresses().items() if own in held]
    if not holders and is_loopback(own):  # 127.0.1.1 is held by the whole of 127.0.0.0/8
        holders = [name for name, held in addresses().items() if "127.0.0.1" in held]
    return Interface(holders[0], own) if holders else None


def advice(message: str) -> str:
    """Return which variable to set where gloo could not connect ranks, or nothing where it is no
    trouble of interfaces.

    Args:
        message: what gloo reported.
    """
    host = env.text("MASTER_ADDR")
    if "connectFullMesh" not in message or env.text(VARIABLE) or not host:
        return ""
    try:
        leading = next(filter(None, map(leading_to, resolve(host, "MASTER_ADDR"))), None)
    except ConfigError:  # then nobody knows
        return ""
    leads = (
        f"{VARIABLE}={leading.name}, as {leading} leads to MASTER_ADDR={host}"
        if leading
        else f"{VARIABLE} to one of its interfaces"
    )
    return (
        f"; gloo listens where a host's own name resolves: on each machine set {VARIABLE}, here "
        f"{leads}"
    )


def reachable() -> list[Interface]:
    """Return the interfaces with an address that other machines may reach."""
    held = [Interface(name, each) for name, own in addresses().items() for each in own]
    return [
        each
        for each in held
        if not (is_loopback(each.address) or ipaddress.ip_address(each.address).is_link_local)
    ]
