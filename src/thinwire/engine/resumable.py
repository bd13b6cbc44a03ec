"""Describe a syncer as saved state needs it: facts, clock, and what has state between steps."""

from __future__ import annotations

from typing import Protocol

from thinwire.engine.clock import Clock
from thinwire.engine.flights import Flights
from thinwire.engine.pace import Pace
from thinwire.engine.session import Session
from thinwire.engine.weights import Weights


class Resumable(Protocol):
    """A syncer, as a checkpoint sees it; see `syncer.Syncer`."""

    @property
    def session(self) -> Session: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def flights(self) -> Flights: ...
    @property
    def weights(self) -> Weights: ...
    @property
    def pace(self) -> Pace | None: ...

    def resume(self, step: int, steps_since_sync: int) -> None:
        """Set the clock, as a checkpoint has it."""
