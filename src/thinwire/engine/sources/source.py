"""The interface of all that feeds the engine: our own hooks, a manual call, and adapters."""

from __future__ import annotations

from abc import ABC, abstractmethod

from thinwire.core.phase import phase
from thinwire.engine.buckets import FlatBucket
from thinwire.engine.session import Session
from thinwire.engine.steps import BackwardSteps
from thinwire.errors import AttachError


class Source(ABC):
    """A source, which notifies the engine of the steps of one training loop."""

    @property
    @abstractmethod
    def active(self) -> bool:
        """Return whether it still notifies the engine of steps."""

    @abstractmethod
    def close(self) -> None:
        """Leave the model and the optimiser as they were before; a second call does nothing."""

    @abstractmethod
    def skip(self) -> None:
        """Take part in a step with no gradient, or no step, of this rank's own."""

    def reduce(self) -> None:
        """Reduce the gradients that are in `.grad`, on the user's call.

        Raises:
            AttachError: this source does so by itself.
        """
        raise AttachError(
            "sync.reduce() is for a syncer that was attached with source='manual': this one "
            "follows backward() and optimizer.step() by its hooks. Leave the call out, or attach "
            "with source='manual'"
        )


class GradientSource(Source):
    """A source that feeds gradients into buckets step by step: the base of all on gradients.

    For each step of the schedule a source calls, on the thread of the training loop:

        begin()          once, before the first gradient
        take(bucket, i)  once for each gradient that there is, in any order, when `.grad` of
                         `bucket.params[i]` holds it; what is not taken counts as without one
        finish()         once, at the end; when it returns, the mean is in `.grad` (or lands in the
                         next forward pass, where `attach` was asked for that)

    All ranks take the same number of steps. They need not take parameters in the same order: a
    bucket flies when its last parameter is taken, in an order that all ranks have agreed on. An
    adapter of another framework is a subclass that calls these: DDP's communication hook takes one
    of DDP's buckets at a time, with `take_all(bucket)`; of sharded parameters (FSDP2) it takes this
    rank's shards.

    Args:
        session: what was attached.
        steps: what happens in a step.
    """

    def __init__(self, session: Session, steps: BackwardSteps) -> None:
        self.session, self._steps = session, steps
        for bucket in session.buckets:
            bucket.separate = not session.strategy.adds_landed

    def begin(self) -> None:
        """Begin a step."""
        with self.session.meter.working(), phase("begin"):
            self._steps.begin()

    def take(self, bucket: FlatBucket, i: int) -> None:
        """Take the gradient of the bucket's parameter `i`."""
        self._steps.take(bucket, i)

    def take_all(self, bucket: FlatBucket) -> None:
        """Take the gradients of a whole bucket."""
        with self.session.meter.working():
            self._steps.take_all(bucket)

    def finish(self) -> None:
        """End a step."""
        with self.session.meter.working(), phase("finish"):
            self._steps.finish()

    def skip(self) -> None:
        self._steps.skip()
