"""On which tensors: targets, what they see of a bucket, and outer optimisers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from thinwire.core.codec import Codec
from thinwire.core.schedule import Schedule
from thinwire.core.spec import Spec
from thinwire.core.state import State
from thinwire.registry import Member


class Bucket(Protocol):
    """A flat group of parameters, as the engine holds it."""

    @property
    def spec(self) -> Spec: ...
    @property
    def world(self) -> int:
        """Ranks that take part."""

    @property
    def when(self) -> Schedule:
        """The schedule that it is launched and landed by."""

    def weights(self) -> Tensor:
        """A new flat copy of the parameters: (spec.numel,) spec.work."""

    def set_weights(self, flat: Tensor) -> None:
        """Copy these values into the parameters: (spec.numel,)."""

    def spoken(self) -> Tensor | None:
        """Which entries the total that has just landed speaks of: (spec.numel,) bool; `None` for
        all of them."""

    def grads(self) -> Tensor:
        """The flat buffer that the hooks filled: (spec.numel,) spec.dtype, already scaled by this
        rank's weight."""

    def set_grads(self, flat: Tensor) -> None: ...


class Target(Member, ABC):
    """On which tensors."""

    kind: ClassVar[str] = "on"
    clock: ClassVar[Literal["backward", "step"]]
    """What a step is: a backward pass, or an optimiser step."""

    @property
    def mean(self) -> bool:
        """Contributions are scaled by their share of the weights, so the sum is the weighted mean;
        else they are summed as they are."""
        return True

    @property
    def accepts_mask(self) -> bool:
        """What a total does not speak of stays as it is, so `write` asks the bucket for the
        mask."""
        return False

    @property
    def contracts(self) -> bool:
        """What it writes draws ranks together that hear different means; of others, such ranks
        would drift apart for good."""
        return False

    @property
    def moves_anchor(self) -> bool:
        """A landing takes all ranks from one anchor to the next, and nothing of their own steps
        since is kept."""
        return False

    @property
    def updates(self) -> bool:
        """What lands in `.grad` is a whole update for a plain SGD, neither to be averaged nor to be
        clipped."""
        return False

    @property
    def homogeneous(self) -> bool:
        """What it writes is as large as what it reads, so a `GradScaler` may scale the one and
        unscale the other."""
        return True

    def refuses(self, when: Schedule, what: Codec) -> str | None:
        """Why this schedule or codec does not fit this target and what to do, or `None`."""
        return None

    def init(self, bucket: Bucket) -> State:
        return State()

    @abstractmethod
    def read(self, bucket: Bucket, state: State, share: float) -> Tensor:
        """This rank's contribution times its share of the weights: (spec.numel,), handed over to
        the route."""

    @abstractmethod
    def write(self, bucket: Bucket, total: Tensor, state: State) -> None:
        """Put the weighted mean where it belongs."""

    def common(self, bucket: Bucket, state: State) -> Tensor | None:
        """What every rank must hold equal: (spec.numel,); `None` where that is the parameters, but
        only just after a landing."""
        return bucket.weights()


class Outer(Member, ABC):
    """The optimiser that applies a mean pseudo-gradient to the anchor."""

    kind: ClassVar[str] = "outer"

    @abstractmethod
    def init(self, spec: Spec, anchor: Tensor) -> State: ...

    def bind(self, bucket: Bucket) -> Outer:
        """The optimiser with what depends on the world and the schedule written into it."""
        return self

    @abstractmethod
    def update(self, anchor: Tensor, delta: Tensor, state: State, spec: Spec) -> Tensor:
        """The new anchor: (spec.numel,) spec.work, on the device of the old one.

        `delta` points from the mean of the ranks' parameters to the old anchor, like a gradient.
        """
