"""Let the ranks that hold the shards of one replica decide alike.

Each of them exchanges its shard with the same shard of other replicas only. So what one of these
exchanges finds (values that are not finite, a problem at attach) the others do not know.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist

from thinwire.core import Driver, Ranks
from thinwire.engine import agree
from thinwire.engine.observe.meter import Meter
from thinwire.errors import AttachError, DisagreementError, ThinwireError


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
        for driver in self.drivers:
            flag = b"1" in agree.all_gather(driver, meter, b"01"[flag:][:1], label, self._device)
        return flag

    def total(self, value: float, meter: Meter, label: str) -> float:
        """Return the sum over the ranks of the replica, which call it alike."""
        for driver in self.drivers:
            packed = struct.pack("<d", value)
            values = agree.all_gather(driver, meter, packed, label, self._device)
            value = sum(float(struct.unpack("<d", each)[0]) for each in values)
        return value

    def refuse_problems(
        self, problem: str, meter: Meter, call: str, kind: type[ThinwireError] = AttachError
    ) -> None:
        """Raise on every rank of the replica what one of them has found; "" is no problem.

        Args:
            kind: of the error that is raised.
        """
        for driver in self.drivers:
            label = f"{call}: asking the replica's ranks for problems"
            texts = agree.all_gather(driver, meter, problem.encode(), label, self._device)
            problem = next((text.decode() for text in texts if text), "")
        if problem:
            raise kind(problem)

    def most(self, value: int, meter: Meter, label: str) -> int:
        """Return the largest value of the ranks of the replica, which call it alike."""
        for driver in self.drivers:
            packed = struct.pack("<q", value)
            values = agree.all_gather(driver, meter, packed, label, self._device)
            value = max(int(struct.unpack("<q", each)[0]) for each in values)
        return value

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
        texts = dict.fromkeys((DisagreementError, AttachError), "")
        try:
            yield
        except (DisagreementError, AttachError) as error:
            texts[type(error)] = str(error)
        for kind, text in texts.items():
            self.refuse_problems(text, meter, call, kind)

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
