"""A board that ranks pin contributions to: rounds in a store of `torch.distributed`, where no rank
waits for a certain other.

Keys, below `thinwire-rounds/`:
    start               "V ID", here S: the run begins with the anchor before round V that ID gave, V = -1 where no checkpoint was loaded.
                        A newer one takes its place until a first round closes: then it is "V ID
                        runs", for good
    c/ID/i              a contribution in pieces; ID = rank.life.number, said once and never changed
    r/S/R/i             the i-th offer to round R: [ID, bytes, round whose anchor it began with], i
    the first that was free r/S/R/members       those that count in round R. Who writes it first
    closes the round, for all floor               contributions of rounds below it may be gone
    snapshot/S, s/S/V/i [V, bytes, requests served]: what all hold equal before round V
A process that dies leaves whole contributions or none: pieces are there before the round hears of
them.

Anybody who reaches the store can write to it. What is read is bounded first (`entries`). An offer
that no rank can have made is passed over; a value without which the round cannot go on ends it with
a `FlightError` that names the key. That keeps mistakes and junk out, no more: whoever writes what a
rank could have written takes part.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from thinwire.drive.asks import Asks, address_of
from thinwire.errors import FlightError, PayloadError
from thinwire.quorum.entries import (
    MOST_ROUNDS,
    Bounds,
    Offer,
    is_count,
    is_name,
    read_json,
    read_offer,
)

T = TypeVar("T")

PIECE = 4 << 20  # bytes of a value: torch's store takes 8 MiB at most
KEEP = 8  # rounds whose contributions stay
_FIRST_LOOK_S, _LOOK_S = 0.005, 0.1  # between two looks at a key, at first and at most
LEAST_S = 2.0  # that a store has for an answer, however short the timeout
_GOODBYE_S = 5.0
_RUNS = " runs"
_NOTHING = "nothing"


class Gone(Exception):  # noqa: N818  (no error: whoever asks falls back on a snapshot)
    """What was asked for has been cleared away."""


class Board:
    """One rank's view.

    Args:
        store: of `torch.distributed`; its host must outlive the run.
        limit_s: seconds that the store has for an answer.
        bounds: the most that entries may say.

    Raises:
        FlightError: of every method: the store gives no answer, or holds what no rank can have
            written.
    """

    def __init__(self, store: Any, limit_s: float, bounds: Bounds) -> None:
        self._store: Any = dist.PrefixStore("thinwire-rounds", store)  # type: ignore[attr-defined]  # not in its __all__
        self._asks = Asks(address_of(store), max(limit_s, LEAST_S))
        self._ask(lambda: self._store.set_timeout(timedelta(seconds=self._asks.limit_s)))
        self._slots: tuple[str, list[Offer | None]] = "", []
        self.bounds = bounds
        self.start = ""
        """The start of the run that this rank is in."""

    # -- claims
    # -------------------------------------------------------------------------------------------------------

    def claim(self, key: str, value: str, instead_of: str = "") -> str:
        """What the key holds, which is `value` if nobody has claimed it before (or it held
        `instead_of`)."""
        held: bytes = self._ask(lambda: self._store.compare_set(key, instead_of, value))
        return held.decode(errors="replace")

    def leave(self, rank: int) -> None:
        """Write down that a rank has left, if the store answers soon."""
        self._asks.ask(
            lambda: self._store.set(f"left/{rank}", ""), min(_GOODBYE_S, self._asks.limit_s)
        )

    def count(self, key: str, more: int = 1) -> int:
        return int(self._ask(lambda: self._store.add(key, more)))

    def has(self, key: str) -> bool:
        return bool(self._ask(lambda: self._store.check([key])))

    def set(self, key: str, value: str) -> None:
        self._ask(lambda: self._store.set(key, value))

    def drop(self, key: str) -> None:
        self._ask(lambda: self._store.delete_key(key))

    def read(self, key: str) -> str | None:
        """What the key holds, or `None`."""
        held = self._read(key)
        return None if held is None else held.decode(errors="replace")

    # -- where the run begins
    # -----------------------------------------------------------------------------------------

    def begin(self, version: int, name: str) -> bool:
        """Let the run begin with this rank's anchor, which it is to serve then, unless there is a
        start as new or a round has closed."""
        mine, before = f"{version} {name}", ""
        while (held := self.claim("start", mine, before)) != mine:
            if self._version_of(held.removesuffix(_RUNS)) >= version or held.endswith(_RUNS):
                return False
            before = held
        self.start = before
        old = self.snapshot()
        if old is not None:
            self._drop(f"s/{before}/{old[0]}", old[1])
        self.start = mine
        return True

    def follow(self) -> int:
        """Go over to the run that is on the board; the version that it begins with."""
        self.start = self._newest_start()
        return self._version_of(self.start)

    def left_behind(self) -> bool:
        """Whether the run on the board begins with another anchor than this rank's."""
        return self._newest_start() != self.start

    def settle(self) -> bool:
        """Let no other start take the place of this rank's; whether none has."""
        return self.claim("start", self.start + _RUNS, self.start) == self.start + _RUNS

    def _newest_start(self) -> str:
        return (self.read("start") or "").removesuffix(_RUNS)

    def _version_of(self, start: str) -> int:
        version, _, name = start.partition(" ")
        if (
            version.removeprefix("-").isdecimal()
            and len(version) < 16
            and is_name(name, self.bounds.ranks)
        ):
            return int(version)
        raise self._malformed("start", start)

    # -- rounds
    # -------------------------------------------------------------------------------------------------------

    def pin(self, contribution: str, blob: bytes) -> None:
        """Put a contribution up, for whichever round will count it."""
        self._put(f"c/{contribution}", blob)

    def come(self, round_: int, offer: Offer) -> None:
        """Offer a contribution to a round, in the first slot that is free."""
        mine, slots = json.dumps(offer), self._slots_of(round_)
        while True:
            held = self.claim(self._slot(round_, len(slots)), mine)
            slots.append(self._read_offer(held, round_))
            if held == mine:
                return

    def came(self, round_: int) -> list[Offer]:
        """What ranks have offered to a round; entries that no rank can have written are passed
        over."""
        slots = self._slots_of(round_)
        while (entry := self.read(self._slot(round_, len(slots)))) is not None:
            slots.append(self._read_offer(entry, round_))
        return list(dict.fromkeys(offer for offer in slots if offer is not None))

    def members(self, round_: int) -> list[Offer] | None:
        """What counts in a round, in order; `None` while it is open."""
        key = f"{self._round(round_)}/members"
        text = self.read(key)
        if text is None:
            return None
        entries = self._json(key, text)
        offers = (
            [read_offer(each, round_, self.bounds) for each in entries]
            if isinstance(entries, list)
            else [None]
        )
        valid = [offer for offer in offers if offer is not None]
        if not offers or len(set(valid)) < len(offers) or len(offers) > self.bounds.slots:
            raise self._malformed(key, text)
        return valid

    def _slots_of(self, round_: int) -> list[Offer | None]:
        """The slots of a round that have been read; of one round at a time, the open one."""
        key = self._round(round_)
        if self._slots[0] != key:
            self._slots = key, []
        return self._slots[1]

    def _slot(self, round_: int, place: int) -> str:
        if place >= self.bounds.slots:
            raise FlightError(
                f"round {round_} has more than {self.bounds.slots} offers in the store at "
                f"{self._asks.address}, more than "
                f"{self.bounds.ranks} ranks make: something else writes there. Begin again in a "
                "store of the run's own"
            )
        return f"{self._round(round_)}/{place}"

    def _read_offer(self, entry: str, round_: int) -> Offer | None:
        try:
            return read_offer(read_json(entry, most=1000), round_, self.bounds)
        except PayloadError:  # told by `None`: anybody can write to the store, and no rank waits for what is not an offer
            return None

    def close_round(self, round_: int, contributions: Sequence[Offer]) -> None:
        """Let these count, unless the round has been closed before; and clear away what is old."""
        told = json.dumps(sorted(contributions))
        if self.claim(f"{self._round(round_)}/members", told) != told or round_ < KEEP:
            return
        old = round_ - KEEP
        self.set("floor", str(old + 1))
        for offer in self.members(old) or []:
            self._drop(f"c/{offer.name}", offer.nbytes)

    @property
    def floor(self) -> int:
        """The oldest round whose contributions are surely there."""
        text = self.read("floor") or "0"
        if not (text.isdecimal() and len(text) < 16):
            raise self._malformed("floor", text)
        return int(text)

    def contribution(self, offer: Offer) -> bytes:
        """
        Raises:
            Gone: it has been cleared away.
            PayloadError: it has not the bytes that were offered.
        """
        return self._get(f"c/{offer.name}", offer.nbytes)

    def _round(self, round_: int) -> str:
        return f"r/{self.start}/{round_}"

    # -- snapshots
    # ----------------------------------------------------------------------------------------------------

    def serve(self, version: int, blob: bytes) -> None:
        """Put up what all hold equal before a round, for all who have asked so far."""
        served, before = self.count("wanted", 0), self.snapshot()
        self._put(f"s/{self.start}/{version}", blob)
        self.set(f"snapshot/{self.start}", json.dumps([version, len(blob), served]))
        if before is not None and before[0] != version:
            self._drop(f"s/{self.start}/{before[0]}", before[1])

    def snapshot(self) -> tuple[int, int, int] | None:
        """(version, bytes, requests served) of the newest, if there is one."""
        key = f"snapshot/{self.start}"
        text = self.read(key)
        if text is None:
            return None
        entry = self._json(key, text)
        most = (MOST_ROUNDS, self.bounds.snapshot_bytes, 1 << 62)
        if not (
            isinstance(entry, list) and len(entry) == len(most) and all(map(is_count, entry, most))
        ):
            raise self._malformed(key, text)
        version, nbytes, served = entry
        return version, nbytes, served

    def shot(self, version: int, nbytes: int) -> bytes:
        """
        Raises:
            Gone: there is a newer one.
            PayloadError: it has not the bytes that were announced.
        """
        return self._get(f"s/{self.start}/{version}", nbytes)

    # -- pieces
    # -------------------------------------------------------------------------------------------------------

    def _put(self, key: str, blob: bytes) -> None:
        for i, at in enumerate(range(0, len(blob), PIECE)):
            self._ask(lambda i=i, at=at: self._store.set(f"{key}/{i}", blob[at : at + PIECE]))  # type: ignore[misc]

    def _get(self, key: str, nbytes: int) -> bytes:
        pieces = []
        for i in range(-(-nbytes // PIECE)):
            piece = self._read(f"{key}/{i}")
            if piece is None:
                raise Gone(f"{key}/{i}")
            pieces.append(piece)
        blob = b"".join(pieces)
        if len(blob) != nbytes:
            raise PayloadError(f"{key} has {len(blob)} bytes where {nbytes} were announced")
        return blob

    def _read(self, key: str) -> bytes | None:
        """What the key holds. The store's `get` would wait for a key that another rank has just
        dropped, however lately it was there."""
        held: bytes = self._ask(lambda: self._store.compare_set(key, _NOTHING, _NOTHING))
        return None if held == _NOTHING.encode() else held

    def _drop(self, key: str, nbytes: int) -> None:
        for i in range(-(-nbytes // PIECE)):
            self.drop(f"{key}/{i}")

    def _ask(self, question: Callable[[], T]) -> T:
        return self._asks.ask(question)

    def _json(self, key: str, text: str) -> Any:
        try:
            return read_json(text)
        except PayloadError as error:
            raise self._malformed(key, text) from error

    def _malformed(self, key: str, text: str) -> FlightError:
        return FlightError(
            f"the store at {self._asks.address} holds {text[:60]!r} under {key!r}, which no rank "
            "of this run writes: something else "
            "writes there. Begin again in a store of the run's own"
        )


def look(done: Callable[[], bool], limit_s: float) -> bool:
    """Look until it is done, ever less often; whether it was within the limit."""
    begun, pause = time.monotonic(), _FIRST_LOOK_S
    while not done():
        if time.monotonic() - begun > limit_s:
            return False
        time.sleep(pause)
        pause = min(2 * pause, _LOOK_S)
    return True
