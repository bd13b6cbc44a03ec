"""Ranks as threads of this process, joined by a `Fabric`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch

from thinwire.core import Driver
from thinwire.drive.local import Fabric


def on_threads(
    world: int, work: Callable[[Driver], Any], lanes: int = 1, timeout_s: float = 10.0
) -> dict[int, Any]:
    """`work(driver)` on a thread for each rank; what it returned, or raised, by rank."""
    fabric, results = Fabric(world, timedelta(seconds=timeout_s)), {}

    def body(rank: int) -> None:
        torch.set_num_threads(1)  # a new thread would start with all cores
        try:
            results[rank] = work(fabric.driver(rank, lanes))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=body, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
