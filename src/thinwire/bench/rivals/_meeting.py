"""What several rivals need before they can talk: this host's own address, and a board that all
ranks read. Not a contestant."""

from __future__ import annotations

import socket
from datetime import timedelta

from torch._C._distributed_c10d import TCPStore

from thinwire.bench.job import Place

BOARD = 2  # of MASTER_PORT: MASTER_PORT itself is gloo's, the next is the workers' meeting


def own_address(place: Place) -> str:
    """The address that this host sends from, when it sends to rank 0's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect((place.address, place.port))  # sends nothing: it only asks the routes
        return str(sender.getsockname()[0])


def board(place: Place, timeout: float) -> TCPStore:
    """A store of rank 0's, for what a rival's own launcher would hand around."""
    return TCPStore(
        place.address,
        place.port + BOARD,
        place.world,
        place.rank == 0,
        timeout=timedelta(seconds=timeout),
    )
