"""Hold each rank's weight in the mean: as `attach` was given, or as ranks send before a launch."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch

from thinwire.core import Driver, Route
from thinwire.engine import agree
from thinwire.engine.observe.meter import Meter
from thinwire.engine.replica import Replica


class Weights:
    """A record of each rank's fraction of the mean sum(w_k · x_k) / sum(w_k)."""

    def __init__(
        self,
        driver: Driver,
        meter: Meter,
        route: Route,
        device: torch.device,
        replica: Replica | None = None,
    ) -> None:
        self._replica = replica or Replica()
        self._driver, self._meter, self._route, self._device = driver, meter, route, device
        self._message: agree.Gathering | None = None  # weights that are on their way
        self.fractions: Sequence[float] = [1 / driver.world] * driver.world
        self.from_ranks = False
        """Whether ranks have sent these weights since `attach`, which was given the first ones."""

    @property
    def own(self) -> float:
        """Return this rank's weight over the sum of all."""
        return self.fractions[self._driver.rank]

    def begin(self, weight: float) -> None:
        """Exchange the weights that every rank gives `attach`."""
        self.send(weight, "attach: weights")
        self.commit()
        self.from_ranks = False

    def send(self, weight: float, label: str = "weigh") -> None:
        """Send this rank's weight to all others, without waiting for theirs.

        Args:
            label: names the exchange where it fails.
        """
        self.commit()
        # Ranks of one replica share a mean already; its weight is the sum of theirs.
        weight = self._replica.total(weight, self._meter, label)
        self._message = agree.Gathering(
            self._driver, self._meter, struct.pack("<d", weight), label, self._device
        )

    def commit(self) -> None:
        """Take up the weights that are on their way, if any."""
        if self._message is None:
            return
        weights = [struct.unpack("<d", packed)[0] for packed in self._message.result()]
        self._message = None
        self.fractions, self.from_ranks = agree.fractions(weights, self._route), True
