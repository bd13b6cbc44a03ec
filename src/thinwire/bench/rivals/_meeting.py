"""Give rivals what they need to connect: this host's own address, and a store of all ranks.

It is not a contestant.
"""

from __future__ import annotations

import socket
from datetime import timedelta

from torch._C._distributed_c10d import TCPStore

from thinwire.bench.job import RankEnv

STORE_PORT = 2  # of MASTER_PORT: MASTER_PORT itself is gloo's, the next is the workers' meeting


def own_address(rank_env: RankEnv) -> str:
    """Return the address that this host sends from to rank 0's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect((rank_env.address, rank_env.port))  # sends nothing: it only asks the routes
        return str(sender.getsockname()[0])


def rendezvous_store(rank_env: RankEnv, timeout: float) -> TCPStore:
    """Return a store of rank 0's, for the values that a rival's own launcher would pass around."""
    return TCPStore(
        rank_env.address,
        rank_env.port + STORE_PORT,
        rank_env.world,
        rank_env.rank == 0,
        timeout=timedelta(seconds=timeout),
    )
