"""What rivals need to connect: an address of this host, and a store beside the worker's own."""

from __future__ import annotations

import socket
import threading

from thinwire.bench.job import RankEnv
from thinwire.bench.rivals._meeting import STORE_PORT, own_address, rendezvous_store
from thinwire.bench.worker import BESIDE


def test_a_host_sends_to_loopback_from_loopback() -> None:
    assert own_address(RankEnv(0, 1, "127.0.0.1", 9)) == "127.0.0.1"


def test_all_ranks_share_a_store_on_a_port_of_its_own() -> None:
    assert STORE_PORT not in (0, BESIDE), "those are gloo's and the worker's"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1] - STORE_PORT
    received: dict[int, bytes] = {}
    stores = []  # rank 0's holds the server: one that closes first would cut the other off

    def work(rank: int) -> None:
        store = rendezvous_store(RankEnv(rank, 2, "127.0.0.1", port), timeout=20.0)
        stores.append(store)
        store.set(f"from/{rank}", str(rank))
        received[rank] = store.get(f"from/{1 - rank}")

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert received == {0: b"1", 1: b"0"}
