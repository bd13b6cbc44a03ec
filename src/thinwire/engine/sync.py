"""Describe what a training loop calls: the syncer of `attach`, or that of `join`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from torch import Tensor, nn

from thinwire.engine.clock import Clock
from thinwire.engine.guards import Watch
from thinwire.engine.observe.meter import Report
from thinwire.strategy import Strategy


@runtime_checkable
class Sync(Protocol):
    """A strategy at work on one model and optimiser, as a training loop sees it.

    A loop that uses only this runs with `thinwire.attach` and with `thinwire.join`.
    """

    @property
    def strategy(self) -> Strategy:
        """Return when, what, how and on which tensors."""

    @property
    def step(self) -> int:
        """Return the steps of the schedule's clock so far."""

    def weigh(self, weight: float) -> None:
        """Set this rank's weight in the means to come."""

    def skip_step(self) -> None:
        """Take part in a step with nothing new."""

    def check(self) -> None:
        """Compare what ranks must hold equal.

        Raises:
            DisagreementError: it differs; the first parameter that does is named.
        """

    def common_weights(self) -> AbstractContextManager[nn.Module]:
        """Give the model the weights that ranks have in common inside the block."""

    def report(self) -> Report:
        """Return bytes and seconds so far."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return all state of the strategy, as tensors."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a state."""

    def load_checkpoint(self, folder: str | Path, key: str = "sync") -> None:
        """Continue from a torch DCP folder."""

    def close(self) -> None:
        """Finish what is in the air and leave the model and the optimiser as they were."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class StepCounter(Protocol):
    """A counter of an optimiser's steps, as a source sees it."""

    @property
    def clock(self) -> Clock: ...

    @property
    def watch(self) -> Watch: ...

    def stepped(self, rested: bool = False) -> None:
        """End an optimiser step."""

    def skip(self) -> None:
        """Take part in a step without one of this rank's own."""
