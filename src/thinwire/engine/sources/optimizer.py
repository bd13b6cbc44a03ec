"""Count local steps by hooks of the optimiser, or of the scaler around it."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from thinwire.engine.compiled import skipped, untraced
from thinwire.engine.session import Session
from thinwire.engine.sources.source import Source
from thinwire.engine.sync import StepCounter
from thinwire.errors import NotLandedError


class OptimizerSteps(Source):
    """A source that counts the optimiser's steps, for targets whose clock is the optimiser."""

    def __init__(self, session: Session, steps: StepCounter) -> None:
        self.session, self._steps = session, steps
        self._scaler_step: Any = None
        self._scaling = False  # within the scaler's step
        hook = self._after_gradient()
        self._handles: list[Any] = [
            param.register_post_accumulate_grad_hook(hook) for _, param in session.trained()
        ]
        optimizer, scaler = session.optimizer, session.options.scaler
        if scaler is None or not scaler.is_enabled():
            self._handles.append(optimizer.register_step_post_hook(self._after_step))
            return
        # An overflow makes one rank's scaler leave the optimiser alone. So count calls of the
        # scaler's step, on every rank alike, or the clocks drift apart.
        self._handles.append(optimizer.register_step_pre_hook(self._refuse_unscaled))
        self._scaler_step = scaler.step
        scaler.step = self._scaled_step

    @property
    def active(self) -> bool:
        return bool(self._handles)

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        scaler = self.session.options.scaler
        # Another syncer may have wrapped `scaler.step` since: then leave its wrapper.
        if self._scaler_step is not None and scaler.step == self._scaled_step:
            scaler.step = self._scaler_step

    def skip(self) -> None:
        self._steps.skip()

    def _after_gradient(self) -> Any:
        """Make the hook that notes that a backward pass has come; once a step is enough."""
        clock, note = self._steps.clock, self._note

        def hook(_: Tensor) -> None:
            if not clock.worked:
                note()

        return skipped(hook)

    @untraced
    def _note(self) -> None:
        self._steps.watch.backward()
        self._steps.clock.worked = True

    @untraced
    def _after_step(self, *_: Any) -> None:
        if self._steps.clock.worked:
            self._count()
        elif any(param.grad is not None for _, param in self.session.trained()):
            warnings.warn(
                (
                    "an optimizer.step() without a backward pass before it does not count as a "
                    "step of the schedule"
                ),
                stacklevel=3,
            )

    @untraced
    def _scaled_step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        self._scaling = True
        try:
            result = self._scaler_step(optimizer, *args, **kwargs)
        finally:
            self._scaling = False
        if optimizer is self.session.optimizer and self._steps.clock.worked and self.active:
            self._count()
        return result

    def _count(self) -> None:
        with self.session.meter.working():
            self._steps.stepped()

    @untraced
    def _refuse_unscaled(self, optimizer: Optimizer, *_: Any) -> None:
        if not self._scaling:
            raise NotLandedError(
                f"{type(optimizer).__name__}.step() by itself, where attach was given a "
                "GradScaler: local steps are counted in "
                "scaler.step(optimizer). Call that, or attach without scaler="
            )
