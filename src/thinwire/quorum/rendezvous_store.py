"""Meet in a store: contributions, rounds and snapshots as keys of a `torch.distributed` store.
No rank waits for a certain other.

Keys, below `thinwire-rounds/`:

    start                "V ID", called S below: the run starts with the anchor before round V that
                         ID gave; V = -1 if no checkpoint was loaded. A newer start replaces it
                         until the first round closes; from then on it is "V ID runs"
    c/ID/i               chunk i of a contribution; ID = rank.life.number, written once
    r/S/R/i              contribution i of round R: [ID, bytes, round whose anchor it began with];
                         i is the first free slot
    r/S/R/members        the contributions that count in round R; the first rank that writes it
                         closes the round
    floor                contributions of rounds below it may be gone
    snapshot/S, s/S/V/i  [V, bytes, requests served]: the state that all hold before round V

A process that dies leaves whole contributions or none: chunks are there before the round lists
them. Anybody who reaches the store can write to it, so everything read is bounded first
(`entries`). A contribution that no rank can have made is skipped. Another value without which the
round cannot go on ends it with a `FlightError` that names the key. That keeps out mistakes and
junk, but not an attacker who writes what a rank could have written.
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
    Contribution,
    is_count,
    is_name,
    read_contribution,
    read_json,
)

T = TypeVar("T")

CHUNK = 4 << 20  # bytes of a value: torch's store takes 8 MiB at most
KEEP = 8  # rounds whose contributions stay
_FIRST_LOOK_S, _LOOK_S = 0.005, 0.1  # between two looks at a key, at first and at most
LEAST_S = 2.0  # that a store has for an answer, however short the timeout
_GOODBYE_S = 5.0
_RUNS = " runs"
_NOTHING = "nothing"


class Gone(Exception):  # noqa: N818  (no error: whoever asks falls back on a snapshot)
    """A value has been cleared away."""


class RendezvousStore:
    """A `torch.distributed` store as one rank of a quorum uses it.

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
        self._call(lambda: self._store.set_timeout(timedelta(seconds=self._asks.limit_s)))
        self._slots: tuple[str, list[Contribution | None]] = "", []
        self.bounds = bounds
        self.start = ""
        """The start of the run that this rank is in."""

    # -- keys

    def set_once(self, key: str, value: str, instead_of: str = "") -> str:
        """Set a key unless it is set (or if it holds `instead_of`), and return what it holds."""
        held: bytes = self._call(lambda: self._store.compare_set(key, instead_of, value))
        return held.decode(errors="replace")

    def leave(self, rank: int) -> None:
        """Record that a rank has left, if the store answers soon."""
        self._asks.ask(
            lambda: self._store.set(f"left/{rank}", ""), min(_GOODBYE_S, self._asks.limit_s)
        )

    def count(self, key: str, more: int = 1) -> int:
        return int(self._call(lambda: self._store.add(key, more)))

    def has(self, key: str) -> bool:
        return bool(self._call(lambda: self._store.check([key])))

    def set(self, key: str, value: str) -> None:
        self._call(lambda: self._store.set(key, value))

    def delete(self, key: str) -> None:
        self._call(lambda: self._store.delete_key(key))

    def read(self, key: str) -> str | None:
        """Return the value of a key, or `None`."""
        held = self._read(key)
        return None if held is None else held.decode(errors="replace")

    # -- where the run begins

    def start_run(self, version: int, name: str) -> bool:
        """Start the run with this rank's anchor, unless there is a start as new or a round has
        closed; return whether it did."""
        mine, before = f"{version} {name}", ""
        # 1. Replace an older start by this one. Each try compares and sets, so of two ranks that
        #    load checkpoints the newer one wins, in either order.
        while (held := self.set_once("start", mine, before)) != mine:
            if self._version_of(held.removesuffix(_RUNS)) >= version or held.endswith(_RUNS):
                return False
            before = held
        # 2. The snapshot of the start that was replaced serves nobody any more.
        self.start = before
        old = self.newest_snapshot()
        if old is not None:
            self._delete_chunks(f"s/{before}/{old[0]}", old[1])
        self.start = mine
        return True

    def adopt_start(self) -> int:
        """Use the start that is in the store, and return its version."""
        self.start = self._newest_start()
        return self._version_of(self.start)

    def start_changed(self) -> bool:
        """Return whether the run in the store begins with another anchor than this rank's."""
        return self._newest_start() != self.start

    def fix_start(self) -> bool:
        """Prevent any other start from replacing this rank's; return whether none has."""
        return self.set_once("start", self.start + _RUNS, self.start) == self.start + _RUNS

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

    def post(self, name: str, blob: bytes) -> None:
        """Post a contribution, for whichever round will count it."""
        self._post_chunks(f"c/{name}", blob)

    def enter(self, round_: int, contribution: Contribution) -> None:
        """Enter a contribution in a round, in the first free slot."""
        mine, slots = json.dumps(contribution), self._slots_of(round_)
        # The first free slot: `set_once` returns another rank's entry where that was faster.
        while True:
            held = self.set_once(self._slot(round_, len(slots)), mine)
            slots.append(self._read_contribution(held, round_))
            if held == mine:
                return

    def entered(self, round_: int) -> list[Contribution]:
        """Return the contributions that ranks have entered in a round; entries that no rank can
        have written are skipped."""
        slots = self._slots_of(round_)
        while (entry := self.read(self._slot(round_, len(slots)))) is not None:
            slots.append(self._read_contribution(entry, round_))
        return list(
            dict.fromkeys(contribution for contribution in slots if contribution is not None)
        )

    def members(self, round_: int) -> list[Contribution] | None:
        """Return what counts in a round, in order; `None` while it is open."""
        key = f"{self._round(round_)}/members"
        text = self.read(key)
        if text is None:
            return None
        # Entries must be those of ranks, each once, and no more than a round can have.
        entries = self._json(key, text)
        contributions = (
            [read_contribution(each, round_, self.bounds) for each in entries]
            if isinstance(entries, list)
            else [None]
        )
        valid = [contribution for contribution in contributions if contribution is not None]
        if (
            not contributions
            or len(set(valid)) < len(contributions)
            or len(contributions) > self.bounds.slots
        ):
            raise self._malformed(key, text)
        return valid

    def _slots_of(self, round_: int) -> list[Contribution | None]:
        """Return the slots of a round that have been read; only those of the open round are
        kept."""
        key = self._round(round_)
        if self._slots[0] != key:
            self._slots = key, []
        return self._slots[1]

    def _slot(self, round_: int, slot: int) -> str:
        if slot >= self.bounds.slots:
            raise FlightError(
                f"round {round_} has more than {self.bounds.slots} offers in the store at "
                f"{self._asks.address}, more than "
                f"{self.bounds.ranks} ranks make: something else writes there. Begin again in a "
                "store of the run's own"
            )
        return f"{self._round(round_)}/{slot}"

    def _read_contribution(self, entry: str, round_: int) -> Contribution | None:
        try:
            return read_contribution(read_json(entry, most=1000), round_, self.bounds)
        except PayloadError:  # anybody can write to the store: what is no contribution is skipped
            return None

    def close_round(self, round_: int, contributions: Sequence[Contribution]) -> None:
        """Close a round with these contributions, unless it is closed; then delete what is old."""
        # 1. Sorted, so that ranks that close with the same contributions write the same text.
        members = json.dumps(sorted(contributions))
        if self.set_once(f"{self._round(round_)}/members", members) != members or round_ < KEEP:
            return
        # 2. Whoever has closed it deletes an old round: the floor first, so that a newcomer asks
        #    for a newer snapshot.
        old = round_ - KEEP
        self.set("floor", str(old + 1))
        for contribution in self.members(old) or []:
            self._delete_chunks(f"c/{contribution.name}", contribution.nbytes)

    @property
    def floor(self) -> int:
        """Return the oldest round whose contributions are certainly there."""
        text = self.read("floor") or "0"
        if not (text.isdecimal() and len(text) < 16):
            raise self._malformed("floor", text)
        return int(text)

    def payload_of(self, contribution: Contribution) -> bytes:
        """Return the bytes of a contribution.

        Raises:
            Gone: it has been cleared away.
            PayloadError: it has another number of bytes than was entered.
        """
        return self._read_chunks(f"c/{contribution.name}", contribution.nbytes)

    def _round(self, round_: int) -> str:
        return f"r/{self.start}/{round_}"

    # -- snapshots

    def post_snapshot(self, version: int, blob: bytes) -> None:
        """Post the state that all ranks hold alike before a round, for all requests so far."""
        # Requests are counted before the bytes are written: one that comes later is not served by
        # them.
        served, before = self.count("wanted", 0), self.newest_snapshot()
        # Chunks, then their announcement, then the old one's chunks: a reader finds one of the two,
        # or learns that it is `Gone`.
        self._post_chunks(f"s/{self.start}/{version}", blob)
        self.set(f"snapshot/{self.start}", json.dumps([version, len(blob), served]))
        if before is not None and before[0] != version:
            self._delete_chunks(f"s/{self.start}/{before[0]}", before[1])

    def newest_snapshot(self) -> tuple[int, int, int] | None:
        """Return (version, bytes, requests served) of the newest snapshot, if there is one."""
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

    def read_snapshot(self, version: int, nbytes: int) -> bytes:
        """Return the bytes of a snapshot.

        Raises:
            Gone: there is a newer one.
            PayloadError: it has another number of bytes than was announced.
        """
        return self._read_chunks(f"s/{self.start}/{version}", nbytes)

    # -- values in chunks

    def _post_chunks(self, key: str, blob: bytes) -> None:
        for i, at in enumerate(range(0, len(blob), CHUNK)):
            self._call(lambda i=i, at=at: self._store.set(f"{key}/{i}", blob[at : at + CHUNK]))  # type: ignore[misc]

    def _read_chunks(self, key: str, nbytes: int) -> bytes:
        chunks = []
        for i in range(-(-nbytes // CHUNK)):
            chunk = self._read(f"{key}/{i}")
            if chunk is None:
                raise Gone(f"{key}/{i}")
            chunks.append(chunk)
        blob = b"".join(chunks)
        if len(blob) != nbytes:
            raise PayloadError(f"{key} has {len(blob)} bytes where {nbytes} were announced")
        return blob

    def _read(self, key: str) -> bytes | None:
        """Return what the key holds. The store's `get` would wait for a key that another rank has
        just deleted."""
        # `compare_set` returns at once: of a key that is not set it gives back what was expected.
        held: bytes = self._call(lambda: self._store.compare_set(key, _NOTHING, _NOTHING))
        return None if held == _NOTHING.encode() else held

    def _delete_chunks(self, key: str, nbytes: int) -> None:
        for i in range(-(-nbytes // CHUNK)):
            self.delete(f"{key}/{i}")

    def _call(self, question: Callable[[], T]) -> T:
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


def poll(done: Callable[[], bool], limit_s: float) -> bool:
    """Call `done` until it returns true, less and less often; return whether it did within the
    limit."""
    begun, pause = time.monotonic(), _FIRST_LOOK_S
    # Twice as long between looks each time, up to a limit: many ranks ask one store.
    while not done():
        if time.monotonic() - begun > limit_s:
            return False
        time.sleep(pause)
        pause = min(2 * pause, _LOOK_S)
    return True
