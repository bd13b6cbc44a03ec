"""A board that ranks pin contributions to: rounds in a store of `torch.distributed`, where no rank waits for a certain other.

Keys, below `thinwire-rounds/`:
    start               "V ID", here S: the run begins with the anchor before round V that ID gave, V = -1 where no checkpoint was loaded.
                        A newer one takes its place until a first round closes: then it is "V ID runs", for good
    c/ID/i              a contribution in pieces; ID = rank.life.number, said once and never changed
    r/S/R/come, r/S/R/i how many contributions round R has, and the i-th: [ID, bytes, round whose anchor it began with]
    r/S/R/members       those that count in round R. Who writes it first closes the round, for all
    floor               contributions of rounds below it may be gone
    snapshot/S, s/S/V/i [V, bytes, requests served]: what all hold equal before round V
A process that dies leaves whole contributions or none: pieces are there before the round hears of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from thinwire.engine.agree import raw
from thinwire.errors import FlightError

T = TypeVar("T")

PIECE = 4 << 20  # bytes of a value: torch's store takes 8 MiB at most
KEEP = 8  # rounds whose contributions stay
_FIRST_LOOK_S, _LOOK_S = 0.005, 0.1  # between two looks at a key, at first and at most
_ANSWER_S = 60.0
_RUNS = " runs"
_NOTHING = "nothing"


class Gone(Exception):  # noqa: N818  (no error: whoever asks falls back on a snapshot)
    """What was asked for has been cleared away."""


class Offer(NamedTuple):
    """A contribution to a round: its ID, its bytes, and the round whose anchor it began with."""

    name: str
    nbytes: int
    began: int

    @property
    def rank(self) -> int:
        """Whose it is."""
        return int(self.name.split(".", maxsplit=1)[0])


class Board:
    """One rank's view.

    Args:
        store: of `torch.distributed`; its host must outlive the run.
    """

    def __init__(self, store: Any) -> None:
        self._store: Any = dist.PrefixStore("thinwire-rounds", store)  # type: ignore[attr-defined]  # not in its __all__
        self._store.set_timeout(timedelta(seconds=_ANSWER_S))
        self._came: dict[str, dict[int, Offer]] = {}
        self.start = ""
        """The start of the run that this rank is in."""

    # -- claims -------------------------------------------------------------------------------------------------------

    def claim(self, key: str, value: str, instead_of: str = "") -> str:
        """What the key holds, which is `value` if nobody has claimed it before (or it held `instead_of`)."""
        held: bytes = self._ask(lambda: self._store.compare_set(key, instead_of, value))
        return held.decode()

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
        return None if held is None else held.decode()

    # -- where the run begins -----------------------------------------------------------------------------------------

    def begin(self, version: int, name: str) -> bool:
        """Let the run begin with this rank's anchor, which it is to serve then, unless there is a start as new or a round has closed."""
        mine, before = f"{version} {name}", ""
        while (held := self.claim("start", mine, before)) != mine:
            if held.endswith(_RUNS) or int(held.split()[0]) >= version:
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
        return int(self.start.split()[0])

    def left_behind(self) -> bool:
        """Whether the run on the board begins with another anchor than this rank's."""
        return self._newest_start() != self.start

    def settle(self) -> bool:
        """Let no other start take the place of this rank's; whether none has."""
        return self.claim("start", self.start + _RUNS, self.start) == self.start + _RUNS

    def _newest_start(self) -> str:
        return (self.read("start") or "").removesuffix(_RUNS)

    # -- rounds -------------------------------------------------------------------------------------------------------

    def pin(self, contribution: str, blob: bytes) -> None:
        """Put a contribution up, for whichever round will count it."""
        self._put(f"c/{contribution}", blob)

    def come(self, round_: int, offer: Offer) -> None:
        """Offer a contribution to a round."""
        place = self.count(f"{self._round(round_)}/come") - 1
        self.set(f"{self._round(round_)}/{place}", json.dumps(offer))

    def came(self, round_: int) -> list[Offer]:
        """What has been offered to a round."""
        key = self._round(round_)
        known = self._came.setdefault(key, {})
        for place in range(self.count(f"{key}/come", 0)):
            if place not in known:
                entry = self.read(f"{key}/{place}")
                if entry is not None:  # else counted and not written yet; or never will be, where its rank died in between
                    known[place] = Offer(*json.loads(entry))
        return list(known.values())

    def members(self, round_: int) -> list[Offer] | None:
        """What counts in a round, in order; `None` while it is open."""
        told = self.read(f"{self._round(round_)}/members")
        return None if told is None else [Offer(*each) for each in json.loads(told)]

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
        return int(self.read("floor") or 0)

    def contribution(self, offer: Offer) -> bytes:
        """
        Raises:
            Gone: it has been cleared away.
        """
        return self._get(f"c/{offer.name}", offer.nbytes)

    def _round(self, round_: int) -> str:
        return f"r/{self.start}/{round_}"

    # -- snapshots ----------------------------------------------------------------------------------------------------

    def serve(self, version: int, blob: bytes) -> None:
        """Put up what all hold equal before a round, for all who have asked so far."""
        served, before = self.count("wanted", 0), self.snapshot()
        self._put(f"s/{self.start}/{version}", blob)
        self.set(f"snapshot/{self.start}", json.dumps([version, len(blob), served]))
        if before is not None and before[0] != version:
            self._drop(f"s/{self.start}/{before[0]}", before[1])

    def snapshot(self) -> tuple[int, int, int] | None:
        """(version, bytes, requests served) of the newest, if there is one."""
        told = self.read(f"snapshot/{self.start}")
        return None if told is None else tuple(json.loads(told))

    def shot(self, version: int, nbytes: int) -> bytes:
        """
        Raises:
            Gone: there is a newer one.
        """
        return self._get(f"s/{self.start}/{version}", nbytes)

    # -- pieces -------------------------------------------------------------------------------------------------------

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
        return b"".join(pieces)

    def _read(self, key: str) -> bytes | None:
        """What the key holds. The store's `get` would wait for a key that another rank has just dropped, however lately it was there."""
        held: bytes = self._ask(lambda: self._store.compare_set(key, _NOTHING, _NOTHING))
        return None if held == _NOTHING.encode() else held

    def _drop(self, key: str, nbytes: int) -> None:
        for i in range(-(-nbytes // PIECE)):
            self.drop(f"{key}/{i}")

    def _ask(self, question: Callable[[], T]) -> T:
        try:
            return question()
        except RuntimeError as error:
            raise FlightError(f"the store of the rounds does not answer ({error}): its host is gone, or cut off") from error


def look(done: Callable[[], bool], limit_s: float) -> bool:
    """Look until it is done, ever less often; whether it was within the limit."""
    begun, pause = time.monotonic(), _FIRST_LOOK_S
    while not done():
        if time.monotonic() - begun > limit_s:
            return False
        time.sleep(pause)
        pause = min(2 * pause, _LOOK_S)
    return True


def pack(told: dict[str, Any], tensors: Sequence[Tensor]) -> bytes:
    """JSON and tensors as bytes.

    Example:
        >>> told, (x,) = unpack(pack({"round": 3}, [torch.ones(2)]))
        >>> told, x
        ({'round': 3}, tensor([1., 1.]))
    """
    told = {**told, "tensors": [[str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for tensor in tensors]}
    head = json.dumps(told).encode()
    return len(head).to_bytes(8, "little") + head + b"".join(map(raw, tensors))


def unpack(blob: bytes) -> tuple[dict[str, Any], list[Tensor]]:
    """What `pack` packed."""
    at = 8 + int.from_bytes(blob[:8], "little")
    told = json.loads(blob[8:at])
    tensors = []
    for name, shape in told.pop("tensors"):
        dtype = getattr(torch, name)
        nbytes = torch.Size(shape).numel() * dtype.itemsize
        bits = torch.frombuffer(bytearray(blob[at : at + nbytes]), dtype=torch.uint8) if nbytes else torch.empty(0, dtype=torch.uint8)
        tensors.append(bits.view(dtype).view(shape))
        at += nbytes
    return told, tensors
