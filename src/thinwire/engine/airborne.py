"""Describe what a bucket has in the air: its slices, and the flights of each launch.

Also what it takes to take a launch back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from thinwire.core import Handle, Leaf, Outcome, Spec, State


class LaunchStatus(Protocol):
    """A launch's facts that all ranks agree on; see `status.Status`."""

    @property
    def bad(self) -> frozenset[int]:
        """Return the indices of buckets of which some rank's values are not finite."""

    @property
    def incomplete(self) -> bool:
        """Return whether every rank misses the gradient of some parameter."""

    @property
    def as_planned(self) -> bool:
        """Return whether some rank finds the wire as fast as planned."""

    @property
    def silent(self) -> Mapping[int, frozenset[int]]:
        """Return by bucket the parameters whose gradient no rank has."""

    @property
    def offender(self) -> str:
        """Return the lowest rank with a value that is not finite, and the parameter."""

    @property
    def whole(self) -> int:
        """Return how many buckets were launched."""

    def wait(self) -> LaunchStatus:
        """Wait for all ranks' messages."""

    def warn_of_absent(self) -> None:
        """Warn where another rank reached parameters that this rank did not."""


@dataclass
class Track:
    """A record of the state leaves that a flight replaced, so that it can be taken back.

    changed: (leaf, value before, value after, factor of the value before in the one after).
    """

    changed: list[tuple[Leaf, Tensor, Tensor, float]] = field(default_factory=list)


@dataclass
class Slice:
    """A span of a bucket that flies by itself, always on the same lane, so its flights stay in
    order."""

    spec: Spec
    lane: int
    state: State
    mask: Callable[[], Tensor] | None = None
    """Of the outcome that has been waited last."""


@dataclass
class Airborne:
    """A launch of one bucket: a flight for each slice, or a total that a checkpoint brought."""

    step: int
    x: Tensor
    handles: list[Handle[Outcome]]
    tracks: list[Track]
    waited: bool = False
    first_bad: int | Tensor = -1
    """The index of the first value here that is not finite, or -1."""
    status: LaunchStatus | None = None
    """What ranks agree on of this launch; `None` where a checkpoint brought it."""
    silent: frozenset[int] = frozenset()
    """Of a launch that a checkpoint brought: parameters whose gradient no rank had."""
