"""Know where other ranks' beacons are, and ask them.

In a world of some tens each rank learns all addresses at the start. In a larger one it learns those
of a few, so that K ranks do not read K addresses each, and the others when it wants to ask them.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Collection, Sequence
from typing import Any

from thinwire.drive.asks import Asks
from thinwire.drive.beacon import State, ask_all
from thinwire.drive.verdicts import EVERYBODY_LOOKS, posted
from thinwire.errors import FlightError

_MEETING_S = 60.0  # until all ranks have put up their addresses
_NEAR = 8  # ranks that are asked once at the start


class Addresses:
    """The addresses that a rank has by now, and the ranks that have ever answered it (`met`).

    Args:
        asks, store: where addresses are.
        token: the run's secret.
        rank: this rank; world: how many there are; host: the rank that holds the store, if any.
    """

    def __init__(
        self, asks: Asks, store: Any, token: str, rank: int, world: int, host: int | None
    ) -> None:
        self._asks, self._store, self._token = asks, store, token
        self.rank, self.world = rank, world
        self.by_rank: dict[int, str] = {}
        self.met: set[int] = set()
        self.near = [
            other
            for other in dict.fromkeys((rank + step) % world for step in range(1, _NEAR + 1))
            if other != rank
        ]
        # of a large world: those 1, 2, 4, 8 … ranks on
        far = [(rank + (1 << power)) % world for power in range(world.bit_length())]
        first = far if world > EVERYBODY_LOOKS else [*range(world)]
        first_ranks = dict.fromkeys([*([] if host is None else [host]), *self.near, *first])
        self.first = [other for other in first_ranks if other != rank]
        """Those whose addresses this rank learns at the start."""

    def meet(self, stop: threading.Event, interval_s: float) -> None:
        """Wait for the first addresses, while the store is there, and see whom this rank
        reaches."""
        keys = [f"beacon/{rank}" for rank in self.first]
        until = time.monotonic() + _MEETING_S
        # without addresses a diagnosis goes by the heartbeats alone
        with contextlib.suppress(FlightError):
            while not self._asks.ask(lambda: self._store.check(keys)) and time.monotonic() < until:
                if stop.wait(interval_s / 5):
                    return
            self._learn(self.first)
            self.ask(self.near)

    def ask(
        self, ranks: Collection[int], question: str = "how"
    ) -> dict[int, tuple[State, dict[str, Any]]]:
        """Ask ranks' beacons side by side; by rank."""
        others = [rank for rank in ranks if rank != self.rank]
        unknown = [rank for rank in others if rank not in self.by_rank]
        if unknown and self.world > EVERYBODY_LOOKS and not self._asks.stuck:
            with contextlib.suppress(FlightError):
                self._learn(unknown)
        addresses = {rank: self.by_rank.get(rank, "") for rank in others}
        results = ask_all(addresses, self._token, question)
        self.met.update(rank for rank, (state, _) in results.items() if state == "answers")
        return results

    def _learn(self, ranks: Sequence[int]) -> None:
        values = posted(self._asks, self._store, [f"beacon/{rank}" for rank in ranks])
        self.by_rank |= {ranks[i]: text.decode(errors="replace") for i, text in values.items()}
