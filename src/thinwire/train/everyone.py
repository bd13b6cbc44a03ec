"""Let all ranks of a run exchange bytes, where a syncer joins some of them only.

A syncer of shards joins the ranks that hold the same shard. Votes, checkpoints and settings are of
all ranks: they go over a driver of their own. Where each rank holds the whole model, the syncer has
all ranks, and is used itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
import torch.distributed as dist

from thinwire.core import Driver
from thinwire.drive.torch import TorchDriver
from thinwire.engine import Syncer, agree
from thinwire.engine.observe.meter import Meter
from thinwire.errors import FlightError, ThinwireError
from thinwire.text.words import first_line


class Everyone(Protocol):
    """All ranks of a run; a syncer of whole models is one."""

    @property
    def driver(self) -> Driver: ...
    @property
    def meter(self) -> Meter: ...
    @property
    def step(self) -> int: ...
    def all_gather(self, payload: bytes, label: str) -> list[bytes]:
        """Return every rank's bytes, by rank; all ranks call it alike."""


class AllRanks:
    """All ranks of a run whose syncer joins shards.

    Args:
        sync: whose steps count, and whose meter counts the bytes.
        driver: of all ranks.
        device: where messages live.
    """

    def __init__(self, sync: Syncer, driver: Driver, device: torch.device) -> None:
        self._sync, self.driver, self._device = sync, driver, device

    @property
    def meter(self) -> Meter:
        return self._sync.meter

    @property
    def step(self) -> int:
        return self._sync.step

    def all_gather(self, payload: bytes, label: str) -> list[bytes]:
        """Return every rank's bytes, by rank; all ranks call it alike."""
        return agree.all_gather(self.driver, self.meter, payload, label, self._device)

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Raise what a failed message in the block means, where FSDP's own messages name no rank,
        and those of a syncer count ranks among the same shards.

        Raises:
            RankLostError: ranks are lost; it names them among all ranks.
            FlightError: messages fail, and no rank is known to be lost.
        """
        try:
            yield
        except RuntimeError as error:
            if not isinstance(self.driver, TorchDriver) or not _of_transport(error):
                raise
            cause = RuntimeError(first_line(error))
            raise self.driver.explain(cause, f"step {self.step}") from error


def _of_transport(error: RuntimeError) -> bool:
    """Return whether a message to another rank has failed."""
    if isinstance(error, ThinwireError):
        return isinstance(error, FlightError)
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)
