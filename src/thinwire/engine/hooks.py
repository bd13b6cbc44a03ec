"""What tells a syncer that a gradient is there or that the optimiser has stepped: hooks of
parameters, optimiser and scaler."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from thinwire.engine.buckets import FlatBucket, plain_name
from thinwire.engine.frames import called_within
from thinwire.errors import AttachError, NotLandedError

if TYPE_CHECKING:
    from thinwire.engine.syncer import Syncer


class Hooks:
    """Those of one syncer: for targets whose clock is the backward pass, or the optimiser's
    step."""

    def __init__(self, sync: Syncer) -> None:
        self._sync = sync
        self._task = -1  # the graph task of the backward pass under way
        self._scaler_step: Any = None
        self.scaling = False
        """Within the scaler's step."""
        on_gradients = sync.strategy.on.clock == "backward"
        self._handles: list[Any] = []
        self._nodes: list[Any] = []  # autograd itself does not keep them
        for bucket in sync.buckets:
            bucket.separate = on_gradients and not sync.strategy.adds_landed
            for i, param in enumerate(bucket.params):
                if bucket.separate:
                    node = _accumulator(param)
                    self._nodes.append(node)
                    self._handles.append(node.register_prehook(self._before_gradient(bucket, i)))
                hook = self._of_gradient(bucket, i) if on_gradients else self._of_work
                self._handles.append(param.register_post_accumulate_grad_hook(hook))
        scaler = sync.options.scaler
        if on_gradients:  # steps are judged by the watch, whichever optimiser takes them
            return
        if scaler is None or not scaler.is_enabled():
            self._handles.append(sync.optimizer.register_step_post_hook(self._of_step))
        else:  # an overflow makes one rank's scaler leave the optimiser alone: count what was attempted, or the clocks drift apart
            self._scaler_step = scaler.step
            scaler.step = self._of_scaled_step

    @property
    def counts_scaled(self) -> bool:
        """Steps are counted where the scaler takes them."""
        return self._scaler_step is not None

    def __bool__(self) -> bool:
        """Whether they are on."""
        return bool(self._handles)

    def close(self) -> None:
        """Take them off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._nodes.clear()
        scaler = self._sync.options.scaler
        if (
            self._scaler_step is not None and scaler.step == self._of_scaled_step
        ):  # another syncer may have wrapped it again
            scaler.step = self._scaler_step

    def _of_gradient(self, bucket: FlatBucket, i: int) -> Any:
        meter = self._sync.meter

        def hook(_: Tensor) -> None:
            if not self._sync.within:
                _refuse_reentrant()
                with meter.working():
                    self._sync.begin()
                self._task = torch._C._current_graph_task_id()
                torch.autograd.Variable._execution_engine.queue_callback(self._of_end)
            elif torch._C._current_graph_task_id() != self._task:
                raise AttachError(
                    "a gradient arrived from another backward pass than the one under way: either "
                    "an earlier backward() failed half-way "
                    "(attach again), or activation checkpointing is reentrant (use checkpoint(…, "
                    "use_reentrant=False))"
                )
            if meter.timed:
                begun = time.thread_time()
                self._sync.take(bucket, i)
                meter.taken(time.thread_time() - begun)
            else:
                self._sync.take(bucket, i)

        return hook

    def _before_gradient(self, bucket: FlatBucket, i: int) -> Any:
        """Of a strategy that must not send a mean again: set it aside just before autograd adds to
        it."""
        updates, landings = self._sync.strategy.on.updates, self._sync.landings

        def hook(*_: Any) -> None:
            grad = bucket.params[i].grad
            if bucket.given[i] is not None and (
                grad is None or not (landings.applied or bool(grad.any()))
            ):
                landings.warn_dropped(bucket.names[i])
            if grad is None:
                bucket.held[i], bucket.given[i] = None, None  # the loop has dropped what there was
            elif bucket.holds_landed(i):
                if updates and bool(grad.any()):
                    raise NotLandedError(
                        f"backward() again while .grad of {bucket.names[i]!r} holds the update of "
                        "the last landing, "
                        f"to which no gradient can be added: with {self._sync.strategy.on!r} call "
                        "optimizer.step() and "
                        "zero_grad() after each landing; to accumulate over n backward passes "
                        "take every(n)"
                    )
                bucket.hold(i)

        return hook

    def _of_end(self) -> None:
        with self._sync.meter.working():
            self._sync.finish()

    def _of_work(self, _: Tensor) -> None:
        self._sync.watch.backward()
        self._sync.worked = True

    def _of_step(self, *_: Any) -> None:
        sync = self._sync
        if sync.worked:
            with sync.meter.working():
                sync.stepped()
        elif any(param.grad is not None for bucket in sync.buckets for param in bucket.params):
            warnings.warn(
                (
                    "an optimizer.step() without a backward pass before it does not count as a "
                    "step of the schedule"
                ),
                stacklevel=3,
            )

    def _of_scaled_step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        self.scaling = True
        try:
            result = self._scaler_step(optimizer, *args, **kwargs)
        finally:
            self.scaling = False
        if optimizer is self._sync.optimizer and self._sync.worked and self:
            with self._sync.meter.working():
                self._sync.stepped()
        return result

    def refuse_step(self) -> None:
        """Raise where an optimiser is about to apply what is this rank's own.

        Raises:
            NotLandedError: no mean has landed.
        """
        sync = self._sync
        if sync.accumulating:
            when = sync.strategy.when
            every = "" if when.gap != when.period else f", once every {when.period} backward passes"
            raise NotLandedError(
                f"optimizer.step() before step {sync.step} of {when!r}: .grad holds this rank's "
                "own sum, no mean has landed. "
                f"Call it after the backward pass at which one lands{every}"
            )


class Frozen:
    """The parameters that did not train at attach, which no bucket holds."""

    def __init__(self, model: nn.Module) -> None:
        self.named: list[tuple[str, Tensor]] = [
            (plain_name(name), param)
            for name, param in model.named_parameters()
            if not param.requires_grad
        ]

    def refuse_frozen(self, buckets: Iterable[FlatBucket]) -> None:
        """Raise where a parameter that local steps hold does not train any more."""
        for bucket in buckets:
            for name, param in zip(bucket.names, bucket.params, strict=True):
                if not param.requires_grad:
                    raise AttachError(
                        f"{name!r} trained at attach and is frozen now: landings of local steps "
                        "would go on moving it. "
                        "Close the syncer and attach again after freezing"
                    )

    def refuse_thawed(self) -> None:
        """Raise where one of them trains now."""
        for name, param in self.named:
            if param.requires_grad:
                raise AttachError(
                    f"{name!r} was frozen at attach and trains now: close the syncer and attach "
                    "again after unfreezing"
                )


def _accumulator(param: nn.Parameter) -> Any:
    """The node that adds to `.grad`; unlike a hook of the tensor, one of it does not run for
    `torch.autograd.grad`."""
    with torch.enable_grad():
        return param.expand_as(param).grad_fn.next_functions[0][0]  # type: ignore[union-attr]


def _refuse_reentrant() -> None:
    """A reentrant checkpoint runs a backward pass within the backward pass, so that its end comes
    too early."""
    if called_within("backward", "utils/checkpoint.py"):
        raise AttachError(
            "reentrant activation checkpointing cannot be synchronised during backward; use "
            "checkpoint(…, use_reentrant=False)"
        )
