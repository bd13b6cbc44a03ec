"""Serve and reach the store in which ranks meet: at one address only, and with errors in one line.

Whoever reaches it may read and change what is in it, so nothing that comes from it is ever
unpickled.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from torch._C._distributed_c10d import TCPStore

from thinwire.drive.interfaces import is_loopback, reachable, resolve
from thinwire.errors import ConfigError, FlightError
from thinwire.text.words import first_line

LOOPBACK = "127.0.0.1"
TRY_S, PAUSE_S = 5.0, 0.2  # one attempt to connect, and the pause before the next
PATIENCE_S = 10.0  # without an answer before a line is printed
GREETING_S = 30.0  # for the store's first answer once it is connected
Note = Callable[[str], None]


@dataclass(frozen=True)
class Endpoint:
    """The address at which the store is served.

    Args:
        host: a name or an address.
        port: of TCP; 0 lets the kernel pick one.
        what: the flag or variable it comes from, for messages.
        several: whether ranks are on several machines.
    """

    host: str
    port: int
    what: str
    several: bool

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def addresses(self) -> list[str]:
        """Return the numeric addresses.

        Raises:
            ConfigError: the host does not resolve, or to loopback only, where other machines cannot
                reach it.
        """
        numeric = resolve(self.host, self.what)
        if self.several and all(map(is_loopback, numeric)):
            own = " or ".join(str(each) for each in reachable()) or "none of this machine's is"
            raise ConfigError(
                f"{self.what}={self.host} is {', '.join(numeric)} on this machine, which no other "
                "machine reaches. "
                f"Give an address of rank 0's machine that the others reach (here: {own})"
            )
        return numeric


def serve(endpoint: Endpoint, note: Note) -> TCPStore:
    """Serve the store at that address only; on all interfaces only if the address is not this
    machine's.

    Raises:
        ConfigError: the address does not resolve, or the port is taken or not allowed.
    """
    # 1. At that address alone, so that no other network reaches the store.
    address = endpoint.addresses()[0]
    try:
        listener = _listen(address, endpoint.port)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise ConfigError(_not_served(endpoint, error)) from error
        # 2. The address is not this machine's, as behind NAT: listen everywhere, and warn.
        note(
            f"{endpoint.what}={endpoint.host} ({address}) is no address of this machine, so the "
            "store "
            "listens on all of its interfaces: "
            "let a firewall keep strangers from the port"
        )
        address = LOOPBACK
        try:
            listener = socket.create_server(("", endpoint.port))
        except OSError as taken:
            raise ConfigError(_not_served(endpoint, taken)) from taken
    # 3. Hand the open socket to torch, so that no other process can take the port in between.
    port = int(listener.getsockname()[1])
    return TCPStore(
        address, port, None, True, timedelta(seconds=GREETING_S), False, False, listener.detach()
    )


def reach(endpoint: Endpoint, timeout: timedelta, note: Note) -> TCPStore:
    """Connect to the store; wait up to `timeout` for its host to come up.

    Raises:
        ConfigError: the address does not resolve.
        FlightError: nobody answers there in time.
    """
    # Try all addresses until the host is up; a plain connection first, which fails at once where
    # nobody listens.
    addresses = endpoint.addresses()
    begun, noted, why = time.monotonic(), False, ""
    while (waited := time.monotonic() - begun) < timeout.total_seconds():
        for address in addresses:
            try:
                socket.create_connection((address, endpoint.port), TRY_S).close()
            except OSError as error:
                why = first_line(error) if error.errno is None else f"{error.strerror}"
                continue
            return _connected(endpoint, address, timeout)
        if waited > PATIENCE_S and not noted:
            noted = True
            note(f"waiting for the store at {endpoint} ({why}); it comes up with rank 0's machine")
        time.sleep(PAUSE_S)
    if endpoint.several:
        do = (
            "is rank 0's machine up, is that its address, and does its firewall let the port "
            "through?"
        )
    else:
        do = "is rank 0 running, and is that its address?"
    raise FlightError(
        f"no store answered at {endpoint} within {timeout.total_seconds():g} s ({why}): {do}"
    )


def _connected(endpoint: Endpoint, address: str, timeout: timedelta) -> TCPStore:
    # torch waits for a first answer without limit, so it does so in a thread.
    answers: list[TCPStore | RuntimeError] = []

    def connect() -> None:
        try:
            answers.append(
                TCPStore(address, endpoint.port, None, False, timedelta(seconds=GREETING_S), False)
            )
        except RuntimeError as error:  # torch's own for connections
            answers.append(error)

    thread = threading.Thread(target=connect, name="thinwire-greeting", daemon=True)
    thread.start()
    thread.join(GREETING_S)
    store = answers[0] if answers else TimeoutError(f"silent for {GREETING_S:g} s")
    if isinstance(store, Exception):
        raise FlightError(
            f"what listens at {endpoint} does not answer as torch's store does "
            f"({first_line(store)}): does another program use that port?",
        ) from store
    store.set_timeout(timeout)
    return store


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family)


def _not_served(endpoint: Endpoint, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {endpoint.port} of {endpoint.host} is taken: another run or program listens "
            "there. "
            f"Give another port to every rank ({endpoint.what}), or stop what holds it (ss -ltnp "
            f"'sport = :{endpoint.port}' names it)"
        )
    return (
        f"the store cannot listen at {endpoint}: {error.strerror}. Give another port to every rank "
        f"({endpoint.what}), such as 29500"
    )
