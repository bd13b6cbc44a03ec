"""A board that ranks pin contributions to: rounds in a store of `torch.distributed`, where no rank waits for a certain other.

Keys, below `thinwire-rounds/`:
    c/ID/i              a contribution in pieces; ID = rank.life.number, said once and never changed
    r/R/come, r/R/i     how many contributions round R has, and the i-th: [ID, bytes]
    r/R/members         the IDs that count in round R. Who writes it first closes the round, for all
    floor               contributions of rounds below it may be gone
    snapshot, s/V/i     [V, bytes, requests served]: what all hold equal before round V
A process that dies leaves whole contributions or none: pieces are there before the round hears of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

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


class Gone(Exception):  # noqa: N818  (no error: whoever asks falls back on a snapshot)
    """What was asked for has been cleared away."""


class Board:
    """One rank's view.

    Args:
        store: of `torch.distributed`; its host must outlive the run.
    """

    def __init__(self, store: Any) -> None:
        self._store: Any = dist.PrefixStore("thinwire-rounds", store)  # type: ignore[attr-defined]  # not in its __all__
        self._store.set_timeout(timedelta(seconds=_ANSWER_S))
        self._came: dict[int, dict[int, tuple[str, int]]] = {}

    # -- claims -------------------------------------------------------------------------------------------------------

    def claim(self, key: str, value: str) -> str:
        """What the key holds, which is `value` if nobody has claimed it before."""
        held: bytes = self._ask(lambda: self._store.compare_set(key, "", value))
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
        return self._ask(lambda: self._store.get(key)).decode() if self.has(key) else None

    # -- rounds -------------------------------------------------------------------------------------------------------

    def pin(self, contribution: str, blob: bytes) -> None:
        """Put a contribution up, for whichever round will count it."""
        self._put(f"c/{contribution}", blob)

    def come(self, round_: int, contribution: str, nbytes: int) -> None:
        """Offer a contribution to a round."""
        place = self.count(f"r/{round_}/come") - 1
        self.set(f"r/{round_}/{place}", json.dumps([contribution, nbytes]))

    def came(self, round_: int) -> list[tuple[str, int]]:
        """(ID, bytes) of what has been offered to a round."""
        known = self._came.setdefault(round_, {})
        for place in range(self.count(f"r/{round_}/come", 0)):
            if place not in known:
                entry = self.read(f"r/{round_}/{place}")
                if entry is not None:  # else counted and not written yet; or never will be, where its rank died in between
                    known[place] = tuple(json.loads(entry))
        return list(known.values())

    def members(self, round_: int) -> list[tuple[str, int]] | None:
        """(ID, bytes) of what counts in a round, in order; `None` while it is open."""
        told = self.read(f"r/{round_}/members")
        return None if told is None else [(contribution, nbytes) for contribution, nbytes in json.loads(told)]

    def close_round(self, round_: int, contributions: Sequence[tuple[str, int]]) -> None:
        """Let these count, unless the round has been closed before; and clear away what is old."""
        told = json.dumps(sorted(contributions))
        if self.claim(f"r/{round_}/members", told) != told or round_ < KEEP:
            return
        old = round_ - KEEP
        self.set("floor", str(old + 1))
        for contribution, nbytes in self.members(old) or []:
            for i in range(-(-nbytes // PIECE)):
                self.drop(f"c/{contribution}/{i}")

    @property
    def floor(self) -> int:
        """The oldest round whose contributions are surely there."""
        return int(self.read("floor") or 0)

    def contribution(self, contribution: str, nbytes: int) -> bytes:
        """
        Raises:
            Gone: it has been cleared away.
        """
        return self._get(f"c/{contribution}", nbytes)

    # -- snapshots ----------------------------------------------------------------------------------------------------

    def serve(self, version: int, blob: bytes) -> None:
        """Put up what all hold equal before a round, for all who have asked so far."""
        served, before = self.count("wanted", 0), self.snapshot()
        self._put(f"s/{version}", blob)
        self.set("snapshot", json.dumps([version, len(blob), served]))
        if before is not None and before[0] != version:
            for i in range(-(-before[1] // PIECE)):
                self.drop(f"s/{before[0]}/{i}")

    def snapshot(self) -> tuple[int, int, int] | None:
        """(version, bytes, requests served) of the newest, if there is one."""
        told = self.read("snapshot")
        return None if told is None else tuple(json.loads(told))

    def shot(self, version: int, nbytes: int) -> bytes:
        """
        Raises:
            Gone: there is a newer one.
        """
        return self._get(f"s/{version}", nbytes)

    # -- pieces -------------------------------------------------------------------------------------------------------

    def _put(self, key: str, blob: bytes) -> None:
        for i, at in enumerate(range(0, len(blob), PIECE)):
            self._ask(lambda i=i, at=at: self._store.set(f"{key}/{i}", blob[at : at + PIECE]))  # type: ignore[misc]

    def _get(self, key: str, nbytes: int) -> bytes:
        pieces = []
        for i in range(-(-nbytes // PIECE)):
            if not self.has(f"{key}/{i}"):
                raise Gone(f"{key}/{i}")
            pieces.append(self._ask(lambda i=i: self._store.get(f"{key}/{i}")))  # type: ignore[misc]
        return b"".join(pieces)

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
