"""Define targets, what they see of a bucket, and outer optimisers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from thinwire.core.codec import Codec
from thinwire.core.component import Component
from thinwire.core.schedule import Schedule
from thinwire.core.spec import Spec
from thinwire.core.state import State


class Bucket(Protocol):
    """A flat group of parameters, as the engine holds it."""

    @property
    def spec(self) -> Spec: ...
    @property
    def world(self) -> int:
        """Return how many ranks take part."""

    @property
    def when(self) -> Schedule:
        """Return the schedule that it is launched and landed by."""

    def weights(self) -> Tensor:
        """Return a new flat copy of the parameters: (spec.numel,) spec.work."""

    def set_weights(self, flat: Tensor) -> None:
        """Copy these values into the parameters: (spec.numel,)."""

    def mask(self) -> Tensor | None:
        """Return which entries the total that has just landed has values for: (spec.numel,) bool;
        `None` for all of them."""

    def grads(self) -> Tensor:
        """Return the flat buffer of gradients: (spec.numel,) spec.dtype, already scaled by this
        rank's weight."""

    def set_grads(self, flat: Tensor) -> None:
        """Put the values of a flat buffer into `.grad`: (spec.numel,) spec.dtype."""


class Target(Component, ABC):
    """A choice of tensors to synchronise: what is read from a bucket, and written to it."""

    kind: ClassVar[str] = "on"
    clock: ClassVar[Literal["backward", "step"]]
    """What a step is: a backward pass, or an optimiser step."""

    @property
    def mean(self) -> bool:
        """Return whether contributions are scaled by weight / sum of weights.

        Their sum is then the weighted mean; else they are summed as they are.
        """
        return True

    @property
    def accepts_mask(self) -> bool:
        """Return whether entries that a total has no values for stay as they are.

        `write` then asks the bucket for the mask.
        """
        return False

    @property
    def contracts(self) -> bool:
        """Return whether its landings draw ranks together that receive different means.

        Without that, such ranks would drift apart for good.
        """
        return False

    @property
    def moves_anchor(self) -> bool:
        """Return whether a landing takes all ranks from one anchor to the next.

        Nothing of their own steps since then stays.
        """
        return False

    @property
    def updates(self) -> bool:
        """Return whether `.grad` gets a whole update for a plain SGD, neither to be averaged
        nor to be clipped."""
        return False

    @property
    def homogeneous(self) -> bool:
        """Return whether what it writes is as large as what it reads, so a `GradScaler` may scale
        the one and unscale the other."""
        return True

    @property
    def offers_base(self) -> bool:
        """Return whether it has values that all ranks hold alike at a launch: those of `base`."""
        return False

    def refuses(self, when: Schedule, what: Codec) -> str | None:
        """Return why this schedule or codec does not fit this target and what to do, or `None`."""
        return None

    def init(self, bucket: Bucket) -> State:
        """Make the state that this target keeps of a bucket."""
        return State()

    @abstractmethod
    def read(self, bucket: Bucket, state: State, weight: float) -> Tensor:
        """Return this rank's contribution times its weight: (spec.numel,), which the route may
        write into.

        Args:
            weight: of this rank, over the sum of all ranks' weights.
        """

    @abstractmethod
    def write(self, bucket: Bucket, total: Tensor, state: State) -> None:
        """Put the weighted mean where it belongs."""

    def base(self, bucket: Bucket, state: State) -> Tensor:
        """Return the values that every rank holds alike at a launch: (spec.numel,) spec.work."""
        raise NotImplementedError(f"{self!r} offers no base")

    def common(self, bucket: Bucket, state: State) -> Tensor | None:
        """Return the values that every rank must hold equal: (spec.numel,); `None` where these are
        the parameters, but only just after a landing."""
        return bucket.weights()


class Outer(Component, ABC):
    """An optimiser that applies a mean pseudo-gradient to the anchor."""

    kind: ClassVar[str] = "outer"

    @abstractmethod
    def init(self, spec: Spec, anchor: Tensor) -> State:
        """Make the optimiser's state for an anchor."""

    def bind(self, bucket: Bucket) -> Outer:
        """Return the optimiser with the settings that depend on the world and the schedule."""
        return self

    @abstractmethod
    def update(self, anchor: Tensor, delta: Tensor, state: State, spec: Spec) -> Tensor:
        """Return the new anchor: (spec.numel,) spec.work, on the device of the old one.

        `delta` points from the mean of the ranks' parameters to the old anchor, like a gradient.
        """
