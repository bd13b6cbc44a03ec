"""What plain TCP sockets of Python reach in the lab, for `benchmarks.wire`: the messages of a
phased exchange and nothing else.

Each pair of ranks has one connection. Slot k: a thread sends to the k-th rank after this one, while
this one hears from the k-th before; the next slot begins when both are done. There is no codec, no
sum, no torch.
"""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

PORT = 29_700
TIMEOUT_S = 60


class Plain:
    """One rank: `exchange` moves `nbytes` to and from every other rank."""

    def __init__(self, rank: int, world: int, nbytes: int) -> None:
        self.rank, self.world = rank, world
        self.out, self.into = memoryview(bytes(nbytes)), memoryview(bytearray(nbytes))
        self.peers: dict[int, socket.socket] = {}
        self.sender = ThreadPoolExecutor(1)
        self.listening = socket.create_server(("", PORT))

    def connect(self) -> None:
        """To all ranks below this one, and from all above; every rank listens by now."""
        for peer in range(self.rank):
            self.peers[peer] = socket.create_connection((f"host{peer}", PORT))
            self.peers[peer].sendall(bytes([self.rank]))
        while len(self.peers) < self.world - 1:
            made, _ = self.listening.accept()
            self.peers[made.recv(1)[0]] = made
        for each in self.peers.values():
            each.settimeout(TIMEOUT_S)

    def exchange(self) -> None:
        """A phased exchange with all others."""
        for k in range(1, self.world):
            sent = self.sender.submit(self.peers[(self.rank + k) % self.world].sendall, self.out)
            source, left = self.peers[(self.rank - k) % self.world], self.into
            while left:
                left = left[source.recv_into(left) :]
            sent.result()

    def close(self) -> None:
        self.sender.shutdown()
        for made in (*self.peers.values(), self.listening):
            made.close()
