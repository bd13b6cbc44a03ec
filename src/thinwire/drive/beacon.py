"""Answer other ranks at a TCP port: whether this rank lives, what it waits for, whom it reaches.

Heartbeats go through the store, so they cannot tell a rank that is cut off from the store's host
from one that died. A beacon can, rank by rank. It is used when a flight has failed, and once at the
start with a few ranks. Where a rank gets no answer itself it asks others to try, as SWIM does (Das,
Gupta and Motivala 2002): only what nobody reaches is lost.

    asked:     TOKEN COMMAND [RANK | JSON] \\n     the token is the run's, from the store
    answered:  JSON \\n                            what this rank says of itself, or of the rank
               that it was asked to try
"""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

from thinwire import env

State: TypeAlias = Literal["answers", "silent", "refused", "unreachable", "unknown"]
"""silent: it took the connection and sent nothing; refused: nobody listens there any more; unknown:
it has no beacon."""

CONNECT_S = 2.0
ANSWER_S = 2.0
MOST_BYTES = 1 << 14  # of a question or an answer
_AT_ONCE = 16  # questions that are answered side by side
_MOST_WAITING = 4096  # that wait for their turn


class Beacon:
    """A beacon: a thread that answers other ranks' questions about this rank.

    Args:
        host: the address to listen on.
        token: the secret that a question must begin with.
        standing: returns this rank's standing.
        tries: tries to reach another rank, given by number, and returns the outcome.
        on_end: takes another rank's message of its own end.

    Raises:
        OSError: nothing can listen there.
    """

    def __init__(
        self,
        host: str,
        token: str,
        standing: Callable[[], dict[str, Any]],
        tries: Callable[[int], dict[str, Any]],
        on_end: Callable[[Any], None],
    ) -> None:
        self._socket = socket.create_server(
            (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024
        )
        self.address = f"{host} {self._socket.getsockname()[1]}"
        self._token, self._standing, self._tries, self._on_end = token, standing, tries, on_end
        self._waiting: queue.Queue[socket.socket | None] = queue.Queue(_MOST_WAITING)
        self._free = threading.Semaphore(0)  # threads that wait for a question
        self._threads = 0
        threading.Thread(target=self._serve, name="thinwire-beacon", daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        with contextlib.suppress(OSError):  # nobody is connected
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed
                for _ in range(self._threads):
                    self._waiting.put(None)
                return
            # When a rank is lost all others may ask at once: they wait for their turn. Whoever
            # floods it is turned away.
            try:
                self._waiting.put_nowait(connection)
            except queue.Full:
                connection.close()
                continue
            if not self._free.acquire(blocking=False) and self._threads < _AT_ONCE:
                self._threads += 1
                threading.Thread(
                    target=self._answer_all, name="thinwire-beacon", daemon=True
                ).start()

    def _answer_all(self) -> None:
        while (connection := self._waiting.get()) is not None:
            self._answer(connection)
            self._free.release()

    def _answer(self, connection: socket.socket) -> None:
        with (
            connection,
            contextlib.suppress(OSError, ValueError, RecursionError),
        ):  # who asks has gone, or is no rank
            connection.settimeout(ANSWER_S)
            token, _, rest = _line(connection).partition(" ")
            command, _, argument = rest.partition(" ")
            # Whoever does not know the run's secret gets no answer at all.
            if token != self._token:
                return
            answer = self._standing()
            if command == "try":
                answer = self._tries(int(argument))
            elif command == "ended":
                self._on_end(json.loads(argument))
            connection.sendall(json.dumps(answer).encode() + b"\n")


def ask(
    address: str, token: str, question: str, patience_s: float = ANSWER_S
) -> tuple[State, dict[str, Any]]:
    """Ask the beacon at an address, and return what came of it and its answer."""
    # 1. Connect. A refusal is the host's own word that no process listens there any more.
    host, _, port = address.partition(" ")
    if not port.isdecimal() or not 0 < int(port) < 1 << 16:
        return "unknown", {}
    try:
        connection = socket.create_connection((host, int(port)), timeout=CONNECT_S)
    except ConnectionRefusedError:
        return "refused", {}
    except OSError:  # no answer in time, or no route
        return "unreachable", {}
    # 2. Ask. A process that is stopped still takes connections, and sends nothing.
    with connection:
        try:
            connection.settimeout(patience_s)
            connection.sendall(f"{token} {question}\n".encode())
            answer = json.loads(_line(connection))
            return ("answers", answer) if isinstance(answer, dict) else ("refused", {})
        except TimeoutError:
            return "silent", {}
        except (OSError, ValueError, RecursionError):
            # It ended meanwhile, or another program has its port.
            return "refused", {}


def ask_all(
    addresses: Mapping[int, str], token: str, question: str, patience_s: float = ANSWER_S
) -> dict[int, tuple[State, dict[str, Any]]]:
    """Ask several beacons side by side; by rank."""
    results: dict[int, tuple[State, dict[str, Any]]] = {}

    def one(rank: int) -> None:
        results[rank] = ask(addresses[rank], token, question, patience_s)

    threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in addresses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(CONNECT_S + 2 * patience_s)
    return {rank: results.get(rank, ("silent", {})) for rank in addresses}


def _line(connection: socket.socket) -> str:
    data = b""
    while not data.endswith(b"\n"):
        more = connection.recv(4096)
        if not more or len(data) > MOST_BYTES:
            raise ValueError("no whole line")
        data += more
    return data.decode("ascii", errors="replace").rstrip("\n")


def own_address(endpoint: tuple[str, int] | None) -> str:
    """Return the address by which others reach this host: GLOO_SOCKET_IFNAME's, else the one that
    leads to the store.

    Raises:
        OSError: there is none.

    Example:
        >>> own_address(("127.0.0.1", 29500))
        '127.0.0.1'
    """
    device = env.text("GLOO_SOCKET_IFNAME").split(",")[0]
    if device:
        with contextlib.suppress(
            OSError, ImportError
        ):  # it has no such device, or only an IPv6 address
            return _address_of_device(device)
    if endpoint is None:
        return "127.0.0.1"
    # Let the system's routes choose the address.
    family, kind, _, _, address = socket.getaddrinfo(*endpoint, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)  # of datagrams: nothing is sent
        return str(probe.getsockname()[0])


def _address_of_device(device: str) -> str:
    import fcntl

    siocgifaddr = 0x8915
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        answer = fcntl.ioctl(probe.fileno(), siocgifaddr, struct.pack("256s", device[:15].encode()))
    return socket.inet_ntoa(answer[20:24])
