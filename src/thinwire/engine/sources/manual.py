"""Take the gradients of a loop that calls `sync.reduce()`.

For loops in which hooks do not run, or in which one step has several backward passes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from thinwire.engine.buckets import FlatBucket
from thinwire.engine.compiled import untraced
from thinwire.engine.overlap.stand_in import Late
from thinwire.engine.session import Session
from thinwire.engine.sources.source import GradientSource
from thinwire.engine.steps import BackwardSteps
from thinwire.errors import AttachError, NotLandedError


class Manual(GradientSource):
    """A source that takes all gradients at `reduce()`, between backward and `optimizer.step()`.

    A hook that only takes note refuses what would let ranks drift apart: a backward pass after
    `reduce()`, whose gradient would be added to the mean, and an optimiser step before it. Where a
    loop makes its gradients without `backward()`, the watch of the engine refuses a step with
    gradients that no `reduce()` has taken.
    """

    def __init__(self, session: Session, steps: BackwardSteps) -> None:
        super().__init__(session, steps)
        self._unreduced = False  # a backward pass has come since the last `reduce()`
        self._handles: list[Any] = [
            param.register_post_accumulate_grad_hook(self._note) for _, param in session.trained()
        ]
        self._handles.append(session.optimizer.register_step_pre_hook(self._refuse_unreduced))

    @property
    def active(self) -> bool:
        return bool(self._handles)

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @untraced
    def reduce(self) -> None:
        """Take part in a step with the gradients that are in `.grad`.

        Raises:
            AttachError: an earlier step failed half-way, or the syncer is closed.
            NotLandedError: a mean that has landed is still in `.grad`.
        """
        # 1. refuse what is no step
        if not self.active:
            raise AttachError("sync.reduce() of a syncer that is closed: attach again")
        if self._steps.clock.within:
            raise AttachError(
                "sync.reduce() within a step: an earlier one failed half-way. Close the syncer "
                "and attach again"
            )
        self._refuse_landed()
        self._unreduced = False
        with self.session.meter.working():
            # 2. take every gradient, in the order in which buckets are laid out. Listed before the
            #    step begins: means that no module has needed land then, and clear `.grad`
            gradients = [
                (bucket, i)
                for bucket in self.session.buckets
                for i, param in enumerate(bucket.params)
                if param.grad is not None and not isinstance(param.grad, Late)
            ]
            self.begin()
            for bucket, i in gradients:
                self.take(bucket, i)
            # 3. launch and land
            self.finish()

    def skip(self) -> None:
        super().skip()
        self._unreduced = False

    def _refuse_landed(self) -> None:
        """Raise where a gradient may have been added to a mean, and the two cannot be taken
        apart."""
        for bucket in self.session.buckets:
            for i, name in enumerate(bucket.names):
                if bucket.holds_landed(i):
                    raise NotLandedError(self._landed_text(bucket, name))

    def _landed_text(self, bucket: FlatBucket, name: str) -> str:
        return (
            f"sync.reduce() at step {self._steps.clock.step}: .grad of {name!r} still holds the "
            "mean of the last reduce(), so gradients that were added since cannot be separated "
            "from it. Call optimizer.zero_grad(), with set_to_none=True as is its default, after "
            "each "
            "optimizer.step(); accumulate over backward passes first and reduce() once"
        )

    @untraced
    def _note(self, _: Tensor) -> None:
        self._unreduced = True

    @untraced
    def _refuse_unreduced(self, *_: Any) -> None:
        if self._unreduced:
            raise NotLandedError(
                f"optimizer.step() at step {self._steps.clock.step}: a backward pass has come "
                "since the last sync.reduce(), so .grad holds this rank's own gradients and ranks "
                "would drift apart. Call sync.reduce() after backward() and before "
                "optimizer.step(), or attach with source='hooks'"
            )
