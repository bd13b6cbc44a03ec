"""How much each rank counts in the mean: as `attach` was given, or as ranks tell before a
launch."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch

from thinwire.core import Driver, Route
from thinwire.engine import agree
from thinwire.engine.meter import Meter


class Weights:
    """Each rank's share of the mean sum(w_k · x_k) / sum(w_k), by rank."""

    def __init__(self, driver: Driver, meter: Meter, route: Route, device: torch.device) -> None:
        self._driver, self._meter, self._route, self._device = driver, meter, route, device
        self._telling: agree.Sharing | None = None
        self.shares: Sequence[float] = [1 / driver.world] * driver.world
        self.told = False
        """Whether the shares are what ranks told last, and not what `attach` was given."""

    @property
    def own(self) -> float:
        """This rank's share."""
        return self.shares[self._driver.rank]

    def begin(self, weight: float) -> None:
        """Take up what every rank gives `attach`."""
        self.tell(weight, "attach: weights")
        self.commit()
        self.told = False

    def tell(self, weight: float, label: str = "weigh") -> None:
        """Send this rank's weight round, without waiting for the others'; `label` is told if it
        fails."""
        self.commit()
        self._telling = agree.Sharing(
            self._driver, self._meter, struct.pack("<d", weight), label, self._device
        )

    def commit(self) -> None:
        """Take up the weights that are on their way, if any."""
        if self._telling is None:
            return
        weights = [struct.unpack("<d", told)[0] for told in self._telling.result()]
        self._telling = None
        self.shares, self.told = agree.shares(weights, self._route), True
