"""Hold the anchor of a rank, and hand the newest one to ranks that come.

A snapshot is the anchor's state as bytes, in the store. A rank that needs one asks by raising a
counter; a rank that is in time posts its own at the end of a round.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

import torch
from torch import Tensor

from thinwire.core import Ranks
from thinwire.engine.options import persistent_buffers
from thinwire.engine.session import Session
from thinwire.errors import FlightError, PayloadError, QuorumError
from thinwire.quorum.entries import pack, read_ranks, unpack
from thinwire.quorum.rendezvous_store import Gone, RendezvousStore, poll

Snapshot = tuple[int, int, int]  # version, bytes, requests served


class Anchor:
    """A rank's anchor, and its snapshots in the store.

    Args:
        session: what was attached.
        store: where snapshots are.
        limit_s: seconds that a newcomer waits for a snapshot.
    """

    def __init__(self, session: Session, store: RendezvousStore, limit_s: float) -> None:
        self._session, self._store, self._limit_s = session, store, limit_s
        # A life is one process: a rank that is started again must not write under its old names.
        self._life, self._number = uuid.uuid4().hex[:12], 0
        self.version = 0
        """Rounds whose contributions are in the anchor."""
        self.members: Ranks = ()
        """The ranks that the last of these rounds counted."""
        self.in_time: Ranks = ()
        """Those of them that began with the anchor of that round."""
        self.missed: Ranks = ()
        """Those of them that began one round earlier."""

    @property
    def rank(self) -> int:
        """Return this rank."""
        return self._session.driver.rank

    def next_name(self) -> str:
        """Return a new name for what this process writes: rank.life.number."""
        self._number += 1
        return f"{self.rank}.{self._life}.{self._number}"

    def restart(self, version: int) -> None:
        """Hold the anchor of a checkpoint, before round `version`."""
        self.version, self.members, self.in_time, self.missed = version, (), (), ()

    def post(self) -> None:
        """Post a snapshot."""
        self._store.post_snapshot(self.version, self.packed())

    def post_if_requested(self) -> None:
        """Post a snapshot if a rank waits for one; one of the ranks that are in time does."""
        newest, me = self._store.newest_snapshot(), f"{self.rank}.{self._life}"
        served = newest[2] if newest is not None else 0
        # `set_once` picks one rank: a snapshot is large, and one serves all that wait.
        if (
            self._store.count("wanted", 0) > served
            and self._store.set_once(f"serve/{self.version}", me) == me
        ):
            self.post()

    def load_newest(self) -> None:
        """Take the newest snapshot of the run that is in the store now.

        Raises:
            QuorumError: there is none within the limit.
            FlightError: the store holds something else.
        """

        def newest() -> Snapshot | None:
            self._store.adopt_start()
            return self._store.newest_snapshot()

        def loaded() -> bool:
            floor = self._store.floor
            version, nbytes, _ = self._wait_for(newest, "the first rank's parameters")
            if floor <= version:
                return self._load(version, nbytes)
            # Contributions to later rounds are gone, so no rank can go on from this snapshot.
            self.request()
            return True

        self._poll_until(loaded)

    def request(self) -> None:
        """Have a rank that is in time post a snapshot, and take it."""
        # Every request has a number; a snapshot serves all requests that came before it.
        request = self._store.count("wanted")

        def fresh() -> Snapshot | None:
            newest = self._store.newest_snapshot()
            return newest if newest is not None and newest[2] >= request else None

        def loaded() -> bool:
            version, nbytes, _ = self._wait_for(
                fresh,
                "the newest anchor, which a rank that is in time puts up at the end of a round",
            )
            return self._load(version, nbytes)

        self._poll_until(loaded)

    # -- packing

    def _shared_tensors(self) -> list[Tensor]:
        """Return what all ranks hold alike beside the anchor's state: frozen parameters, saved
        buffers."""
        return [
            *(param.data for _, param in self._session.frozen),
            *(buffer for _, buffer in persistent_buffers(self._session.model)),
        ]

    def packed(self) -> bytes:
        """Return the anchor's state as bytes."""
        leaves = [leaf.value for bucket in self._session.buckets for _, leaf in bucket.state.walk()]
        return pack(
            {"members": self.members, "in_time": self.in_time, "missed": self.missed},
            leaves + self._shared_tensors(),
        )

    def _load(self, version: int, nbytes: int) -> bool:
        """Take a snapshot; return whether it was still there."""
        # 1. read it, and hold it against the model
        leaves = [leaf for bucket in self._session.buckets for _, leaf in bucket.state.walk()]
        shared = self._shared_tensors()
        try:
            head, tensors = unpack(self._store.read_snapshot(version, nbytes))
            expected = [
                (value.dtype, value.shape) for value in (*(leaf.value for leaf in leaves), *shared)
            ]
            if [(tensor.dtype, tensor.shape) for tensor in tensors] != expected:
                raise PayloadError("it has other tensors than this model")
            members, in_time, missed = (
                read_ranks(head.get(name), self._store.bounds)
                for name in ("members", "in_time", "missed")
            )
        except Gone:  # there is a newer one
            return False
        except PayloadError as error:
            raise FlightError(
                f"what the store holds as the anchor of round {version} is none: {error}"
            ) from error
        # 2. take it: the anchor's state comes first, then what all ranks hold alike beside it
        for leaf, value in zip(leaves, tensors, strict=False):
            leaf.value = value.to(leaf.value)
        with torch.no_grad():
            for own, value in zip(shared, tensors[len(leaves) :], strict=True):
                own.copy_(value)
        self.version, self.members, self.in_time, self.missed = version, members, in_time, missed
        return True

    # -- waiting

    def _poll_until(self, loaded: Callable[[], bool]) -> None:
        if not poll(loaded, self._limit_s):
            raise QuorumError(
                f"rank {self.rank}: no anchor that the store announced within "
                f"{self._limit_s:g} s was there"
            )

    def _wait_for(self, read: Callable[[], Snapshot | None], what: str) -> Snapshot:
        read_so_far: list[Snapshot] = []

        def there() -> bool:
            snapshot = read()
            read_so_far.extend([] if snapshot is None else [snapshot])
            return snapshot is not None

        if not poll(there, self._limit_s):
            raise QuorumError(
                f"rank {self.rank} waited {self._limit_s:g} s for {what}, and it did not come. "
                "Do the others run?"
            )
        return read_so_far[-1]
