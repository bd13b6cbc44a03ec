"""Let the ranks that hold the shards of one replica decide alike.

Each of them exchanges its shard with the same shard of other replicas only. So what one of these
exchanges finds (values that are not finite, a problem at attach) the others do not know.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist

from thinwire.core import Driver, Ranks
from thinwire.engine import agree
from thinwire.engine.observe.meter import Meter
from thinwire.errors import AttachError, DisagreementError


class Replica:
    """The ranks of one replica; of a model that is not sharded, this rank alone.

    Args:
        drivers: one for each dimension of the mesh over which parameters are sharded.
        device: where messages live.
    """

    def __init__(
        self, drivers: Sequence[Driver] = (), device: torch.device = torch.device("cpu")
    ) -> None:
        self.drivers, self._device = tuple(drivers), device
        self.members: Ranks | None = None
        """The global ranks of all replicas, empty for every rank there is, once they have met."""

    @property
    def ranks(self) -> int:
        """Return how many ranks hold a replica together."""
        count = 1
        for driver in self.drivers:
            count *= driver.world
        return count

    @property
    def name(self) -> str:
        """Return which of its shards this rank has, such as "1/2"; "" where it has all."""
        return ",".join(f"{driver.rank}/{driver.world}" for driver in self.drivers)

    def any(self, flag: bool, meter: Meter, label: str) -> bool:
        """Return whether the flag is set on some rank; all ranks of the replica call it alike."""
        return self._folded(b"1" if flag else b"0", max, meter, label) == b"1"

    def total(self, value: float, meter: Meter, label: str) -> float:
        """Return the sum over the ranks of the replica, which call it alike."""

        def add(packed: list[bytes]) -> bytes:
            return struct.pack("<d", sum(struct.unpack("<d", each)[0] for each in packed))

        return float(
            *struct.unpack("<d", self._folded(struct.pack("<d", value), add, meter, label))
        )

    def most(self, value: int, meter: Meter, label: str) -> int:
        """Return the largest value of the ranks of the replica, which call it alike."""
        return int(self._folded(str(value).encode(), lambda sent: max(sent, key=int), meter, label))

    def refuse_problems(self, problem: str, meter: Meter, call: str) -> None:
        """Raise on every rank of the replica what one of them has found; "" is no problem.

        Raises:
            AttachError: some rank has a problem.
        """
        label = f"{call}: asking the replica's ranks for problems"
        if listed := self._folded(problem.encode(), _first, meter, label):
            raise AttachError(listed.decode())

    @contextmanager
    def agreeing(self, meter: Meter, call: str) -> Iterator[None]:
        """Let all ranks of the replica raise what one of them raises in the block, where it
        compares its shards with those of other replicas.

        Raises:
            DisagreementError: ranks differ.
            AttachError: a rank has a problem.
        """
        if not self.drivers:
            yield
            return
        problem = ""
        try:
            yield
        except (DisagreementError, AttachError) as error:
            problem = f"{type(error).__name__}: {error}"
        label = f"{call}: asking the replica's ranks for problems"
        if listed := self._folded(problem.encode(), _first, meter, label).decode():
            name, _, text = listed.partition(": ")
            raise {kind.__name__: kind for kind in (DisagreementError, AttachError)}[name](text)

    def _folded(
        self, own: bytes, fold: Callable[[list[bytes]], bytes], meter: Meter, label: str
    ) -> bytes:
        """Return what is made of every rank's bytes, one dimension of the mesh after the other."""
        for driver in self.drivers:
            own = fold(agree.all_gather(driver, meter, own, label, self._device))
        return own

    def meet(self, across: Driver, meter: Meter) -> None:
        """Learn the ranks of all replicas; all of them call it alike.

        Args:
            across: the driver among the same shards of all replicas.
        """
        if not self.drivers:
            return
        ranks = {dist.get_rank()}
        for driver in (*self.drivers, across):
            gathered = agree.all_gather(
                driver,
                meter,
                json.dumps(sorted(ranks)).encode(),
                "attach: ranks of all replicas",
                self._device,
            )
            ranks = {rank for each in gathered for rank in json.loads(each)}
        self.members = tuple(sorted(ranks)) if len(ranks) < dist.get_world_size() else ()

    def close(self) -> None:
        """Stop its connections; a second call does nothing."""
        for driver in self.drivers:
            driver.close()


def _first(texts: list[bytes]) -> bytes:
    """Return the first text that is not empty, if there is one."""
    return next((text for text in texts if text), b"")
