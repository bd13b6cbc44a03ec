"""Heartbeats in the store: when a flight fails, they tell who is gone and where the others stand.

Each rank's thread writes a counter and its step once an `interval`. Nobody compares clocks: a rank whose counter does not move while a
diagnosis looks on is silent.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")

INTERVAL_S = 0.5
_LOOK = 4  # intervals that a diagnosis looks on


@dataclass(frozen=True)
class Diagnosis:
    """Who is silent, who has closed, and what each rank said last."""

    silent: tuple[int, ...]
    left: tuple[int, ...]
    said: dict[int, str]


class Watch:
    """This rank's heartbeat, and the view of the others'.

    Args:
        store: a store of its own connection (a clone), below a prefix of its own.
        rank: this rank in the group; world: how many there are.
        host: the rank whose process holds the store, or `None` where a launcher does.
    """

    def __init__(self, store: Any, rank: int, world: int, host: int | None = 0) -> None:
        self._store, self.rank, self.world, self._host = store, rank, world, host
        self._store.set_timeout(timedelta(seconds=_LOOK * INTERVAL_S * 2))
        self._label = "attach"
        self._deaf = False  # the store has left a question without an answer
        self._stop = threading.Event()
        self._beat(0)
        self._thread = threading.Thread(target=self._loop, name="thinwire-heartbeat", daemon=True)
        self._thread.start()

    def at(self, label: str) -> None:
        """Say where this rank stands; told with the next beat."""
        self._label = label

    def diagnose(self) -> Diagnosis:
        """Look at the heartbeats for a while. The first to find a rank silent leaves a note, so that all name the same."""
        before = self._read()
        if before is not None:
            time.sleep(_LOOK * INTERVAL_S)
        after = self._read() if before is not None else None
        if before is None or after is None:
            host = () if self._host is None else (self._host,)
            return Diagnosis(host, (), dict.fromkeys(host, "holds the store, which does not answer"))
        said = {rank: str(beat[1]) for rank, beat in after.items()}
        left = tuple(rank for rank, beat in after.items() if beat[0] == -1)
        silent = tuple(rank for rank, beat in after.items() if rank != self.rank and beat[0] != -1 and beat[0] == before[rank][0])
        note = self._ask(lambda: json.loads(self._store.get("lost")) if self._store.check(["lost"]) else None)
        if note:
            return Diagnosis(tuple(note), left, said)
        if silent:
            self._ask(lambda: self._store.set("lost", json.dumps(silent)))
        return Diagnosis(silent, left, said)

    def close(self) -> None:
        """Stop beating and say goodbye."""
        self._stop.set()
        if self._deaf:  # cut off from the store's host: the heartbeat hangs in it, and a goodbye would
            return
        self._thread.join(_LOOK * INTERVAL_S * 2)
        self._ask(lambda: self._beat(-1))

    def _loop(self) -> None:
        count = 0
        while not self._stop.wait(INTERVAL_S):
            count += 1
            try:
                self._beat(count)
            except RuntimeError:  # a slow answer, or the store is gone and the flights will fail: try on
                continue

    def _beat(self, count: int) -> None:
        self._store.set(f"beat/{self.rank}", json.dumps([count, self._label]))

    def _read(self) -> dict[int, tuple[int, str]] | None:
        """Every rank's last beat; one that never came has none that moves."""

        def read() -> dict[int, tuple[int, str]]:
            keys = [f"beat/{rank}" for rank in range(self.world)]
            beats = [self._store.get(key) if self._store.check([key]) else b'[0, "never came"]' for key in keys]
            return {rank: tuple(json.loads(beat)) for rank, beat in enumerate(beats)}

        return self._ask(read)

    def _ask(self, question: Callable[[], T]) -> T | None:
        """The store's answer, or `None` where it gives none in time (a stopped host never closes its socket)."""
        answers: list[T] = []

        def ask() -> None:
            try:
                answers.append(question())
            except RuntimeError:  # no answer: told by `None`
                return

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(_LOOK * INTERVAL_S * 2)
        self._deaf = self._deaf or thread.is_alive()
        return answers[0] if answers else None
