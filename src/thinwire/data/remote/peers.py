"""Let hosts fetch for each other: one host fetches each shard from the server, and the others from
that host.

    THINWIRE_PEERS=10.0.0.1:7700,10.0.0.2:7700

These are the hosts' addresses on the fast link, in the order of torchrun's nodes.
What is handed on is known by its checksum, which the receiver checks, and only what a set's index
names is handed out. Where a peer does not answer, the shard comes from afar after all, with one
warning.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from thinwire import env
from thinwire.data.remote.http import About, Http
from thinwire.errors import DataError

Bytes = bytes | memoryview
PEERS = "THINWIRE_PEERS"
PATIENCE_S = 60.0  # the peer itself may have to fetch first


class Peers:
    """The hosts of a run, and this one among them.

    Args:
        addresses: `host:port` of each, the same on all.
        own: the number of this one.

    Raises:
        DataError: an address that is none, or a number that no host has.
    """

    def __init__(self, addresses: Sequence[str], own: int) -> None:
        for address in addresses:
            if not address.rpartition(":")[0] or not address.rpartition(":")[2].isdecimal():
                raise DataError(
                    f"{PEERS} holds {address!r}, which is no HOST:PORT; give one to a host, with "
                    "commas between"
                )
        if not 0 <= own < len(addresses):
            raise DataError(
                f"{PEERS} holds {len(addresses)} addresses, and this is host {own} of the run; "
                "give one to each host"
            )
        self.addresses, self.own = tuple(addresses), own
        self.received_bytes = 0
        self._server: ThreadingHTTPServer | None = None
        self._http = Http(stall_s=PATIENCE_S, tries=2)
        self._warned = False

    def fetch(self, sha256: str, size: int, from_afar: Callable[[], bytes]) -> bytes:
        """Return the bytes with that checksum: from the peer that has them, or from the server."""
        # The checksum decides the owner, so all hosts agree on it without a message.
        owner = int(sha256[:8], 16) % len(self.addresses)
        if owner == self.own:
            return from_afar()
        try:
            data = self._http.read(
                f"http://{self.addresses[owner]}/{sha256}", 0, size, About(size, "")
            )
        except DataError as error:
            # Warn once: a lost peer would otherwise warn for each of its shards.
            if not self._warned:
                self._warned = True
                warnings.warn(
                    (
                        f"the peer {self.addresses[owner]} hands nothing out ({error}): fetching "
                        "it from afar"
                    ),
                    stacklevel=2,
                )
            return from_afar()
        self.received_bytes += len(data)
        return data

    def serve(self, find: Callable[[str], Bytes]) -> None:
        """Serve what `find` returns for a checksum (it raises `LookupError` for others), until
        `close`.

        Raises:
            DataError: the address cannot be listened on.
        """

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                try:
                    data = find(self.path.lstrip("/"))
                except LookupError:
                    self.send_error(404)
                except DataError as error:
                    self.send_error(502, str(error)[:200].encode("ascii", "replace").decode())
                else:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Print nothing on the console."""

        # Threads of the server are daemons: they must not hold up the end of the process.
        host, _, port = self.addresses[self.own].rpartition(":")
        try:
            self._server = ThreadingHTTPServer((host, int(port)), Handler)
        except OSError as error:
            raise DataError(
                f"{PEERS}: this host cannot listen on {self.addresses[self.own]} "
                f"({error.strerror}): give its own address and a free port"
            ) from error
        self._server.daemon_threads = True
        threading.Thread(
            target=self._server.serve_forever, name="thinwire-peers", daemon=True
        ).start()

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


def peers_from(environ: dict[str, str] | None = None) -> Peers | None:
    """Return the peers that the environment names; `None` if it names none.

    Raises:
        DataError: as `Peers`.
    """
    environ = env.copy() if environ is None else environ
    addresses = [
        address.strip() for address in environ.get(PEERS, "").split(",") if address.strip()
    ]
    return Peers(addresses, int(environ.get("GROUP_RANK", "0"))) if addresses else None
