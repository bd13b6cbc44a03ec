"""Let all ranks of a run exchange bytes, where a syncer joins some of them only.

A syncer of shards joins the ranks that hold the same shard. Votes, checkpoints and settings are of
all ranks: they go over a driver of their own. Where each rank holds the whole model, the syncer has
all ranks, and is used itself.
"""

from __future__ import annotations

from typing import Protocol

import torch

from thinwire.core import Driver
from thinwire.engine import Syncer, agree
from thinwire.engine.observe.meter import Meter


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
