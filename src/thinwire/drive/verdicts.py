"""Let one rank of a large world find out who is lost, and have the others take over its verdict.

A rank that is lost makes the flights of all others fail at once. If each of K of them read every
heartbeat and asked every beacon, K² answers would keep the store and the beacons from showing who
lives, and living ranks would be taken for lost. So the first rank to come looks for all, and the
others wait for what it finds, one small question at a time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from thinwire.drive.asks import Asks
from thinwire.drive.blame import Diagnosis, Standing, read_diagnosis, read_standing

EVERYBODY_LOOKS = 32
"""The most ranks of a world in which each rank looks for itself, and asks all others."""
_PATIENCE_S = 60.0  # that a speaker has for its verdict
_WAIT_S = 0.5  # between two looks for it
_TURNS = 2  # speakers that are waited for
_MOST_STANDINGS = 64  # standings that go with a verdict

Found = tuple[Diagnosis, dict[int, Standing]]


class Verdicts:
    """A rank's view of the verdict that one rank of the world finds for all.

    Args:
        asks, store: by which they are exchanged.
        rank: this rank; world: how many there are.
    """

    def __init__(self, asks: Asks, store: Any, rank: int, world: int) -> None:
        self._asks, self._store, self.rank, self.world = asks, store, rank, world

    def verdict(self, look: Callable[[], Found]) -> Found:
        """Return the speaker's verdict; where that is this rank, look and let the others have it.

        Raises:
            NoAnswerError: the store does not answer, so each rank has to look for itself.
        """
        ask, own = self._asks.ask, str(self.rank)
        for turn in range(_TURNS):
            # 1. The first rank to come looks for all.
            speaker = ask(partial(self._store.compare_set, f"speaker/{turn}", "", own))
            verdict_key = f"verdict/{turn}"
            if speaker == own.encode():
                verdict = look()
                ask(partial(self._store.set, verdict_key, self._written(*verdict)))
                return verdict
            # 2. The others wait for what it finds.
            until = time.monotonic() + _PATIENCE_S
            while time.monotonic() < until:
                if ask(partial(self._store.check, [verdict_key])):
                    text = ask(partial(self._store.get, verdict_key))
                    taken = self._taken(int(speaker) if speaker.isdigit() else -1, text)
                    if taken is not None:
                        return taken
                    break
                time.sleep(_WAIT_S)
        # Speakers were lost themselves, or have seen what is theirs alone.
        return look()

    def _written(self, diagnosis: Diagnosis, standings: dict[int, Standing]) -> str:
        """Return a verdict as text, with the standings of those to blame, and of some others."""
        ranks = [rank for rank in diagnosis.ranks if rank in standings]
        shown = list(dict.fromkeys([*ranks, *standings]))[:_MOST_STANDINGS]
        return json.dumps(
            {
                "verdict": diagnosis.plain(),
                "standings": {str(rank): standings[rank].plain() for rank in shown},
            }
        )

    def _taken(self, speaker: int, text: bytes) -> Found | None:
        """Return another rank's verdict as this rank has it; `None` where it is of that rank
        alone."""
        try:
            value = json.loads(text)
            diagnosis = read_diagnosis(value["verdict"], self.world)
            standings = {
                int(rank): standing
                for rank, plain in value["standings"].items()
                if (standing := read_standing(plain, self.world)) is not None
            }
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        if diagnosis is None or diagnosis.kind in ("alone", "store"):
            return None
        if diagnosis.kind == "lost" and self.rank in diagnosis.ranks:
            cut_off = f"rank {speaker} did not reach this rank, and has taken it for lost"
            return Diagnosis("alone", (), cut_off), standings
        by = f" (found by rank {speaker})"
        return (
            Diagnosis(diagnosis.kind, diagnosis.ranks, diagnosis.text + by, diagnosis.link),
            standings,
        )


def posted(asks: Asks, store: Any, keys: Sequence[str]) -> dict[int, bytes]:
    """Return the values of those keys that are in a store, by their number in `keys`.

    One question for all where all are there; else the missing ones are found by halving.
    """

    def read() -> dict[int, bytes]:
        here: list[int] = []
        parts = [range(len(keys))] if keys else []
        while parts:
            part = parts.pop()
            if store.check([keys[i] for i in part]):
                here += part
            elif len(part) > 1:
                middle = len(part) // 2
                parts += [part[:middle], part[middle:]]
        values = store.multi_get([keys[i] for i in here]) if here else []
        return dict(sorted(zip(here, values, strict=True)))

    return asks.ask(read)
