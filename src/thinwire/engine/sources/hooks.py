"""Take gradients as backward brings them, by hooks of parameters: buckets fly while it runs."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from thinwire.engine.buckets import FlatBucket
from thinwire.engine.compiled import compiler, skipped, untraced
from thinwire.engine.frames import called_within
from thinwire.engine.landings import Landings
from thinwire.engine.session import Session
from thinwire.engine.shards import local_of
from thinwire.engine.sources.source import GradientSource
from thinwire.engine.steps import BackwardSteps
from thinwire.errors import AttachError, NotLandedError


class GradientHooks(GradientSource):
    """A source that takes each gradient when autograd has accumulated it into `.grad`.

    It finishes the step at the end of backward."""

    def __init__(self, session: Session, steps: BackwardSteps) -> None:
        super().__init__(session, steps)
        self._task = -1  # the graph task of the backward pass under way
        self._nodes: list[Any] = []  # which autograd itself does not keep
        self._handles = self._set_means_aside(session, steps.landings)
        for bucket in session.buckets:
            for i, param in enumerate(bucket.params):
                hook = self._after_gradient(bucket, i)
                self._handles.append(param.register_post_accumulate_grad_hook(hook))

    def _set_means_aside(self, session: Session, landings: Landings) -> list[Any]:
        """Hook on, so that a landed mean is set aside before a gradient is added to it."""
        self._nodes, handles = set_means_aside(session, landings)
        return handles

    @property
    def active(self) -> bool:
        return bool(self._handles)

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._nodes.clear()

    @untraced
    def _end(self) -> None:
        self.finish()

    def _after_gradient(self, bucket: FlatBucket, i: int) -> Any:
        """Make the hook that takes a gradient."""
        arrived, beside_compiler = self._arrived, self._beside_compiler

        def hook(_: Tensor) -> None:
            if compiler() is None:
                arrived(bucket, i)
            else:
                beside_compiler(bucket, i)

        return skipped(hook)

    def _arrived(self, bucket: FlatBucket, i: int) -> None:
        """Take a gradient; the first one of a backward pass begins a step."""
        # 1. The engine calls `finish` at the end of the pass that the first gradient is of.
        #    Gradients of another pass would be of another step.
        if not self._steps.clock.within:
            _refuse_reentrant()
            self.begin()
            self._task = torch._C._current_graph_task_id()
            torch.autograd.Variable._execution_engine.queue_callback(self._end)
        elif torch._C._current_graph_task_id() != self._task:
            raise AttachError(
                "a gradient arrived from another backward pass than the one under way: either "
                "an earlier backward() failed half-way "
                "(attach again), or activation checkpointing is reentrant (use checkpoint(…, "
                "use_reentrant=False)), or compiled autograd is on (turn "
                "torch._dynamo.config.compiled_autograd off)"
            )
        # 2. Take the gradient into its bucket, which may launch it.
        meter = self.session.meter
        if meter.timed:
            begun = time.thread_time()
            self.take(bucket, i)
            meter.taken(time.thread_time() - begun)
        else:
            self.take(bucket, i)

    @untraced
    def _beside_compiler(self, bucket: FlatBucket, i: int) -> None:
        self._arrived(bucket, i)


def set_means_aside(session: Session, landings: Landings) -> tuple[list[Any], list[Any]]:
    """Hook on to autograd, so that it sets a landed mean aside before it adds to `.grad`.

    That is for strategies that must not send a mean again; it is none for others.

    Returns:
        The accumulating nodes, which autograd itself does not keep, and the hooks' handles.
    """
    nodes, handles = [], []
    for bucket in session.buckets:
        for i, param in enumerate(bucket.params if bucket.separate else ()):
            nodes.append(_accumulator(param))
            hook = before_gradient(session, landings, bucket, i)
            handles.append(nodes[-1].register_prehook(hook))
    return nodes, handles


def before_gradient(session: Session, landings: Landings, bucket: FlatBucket, i: int) -> Any:
    """Make the hook that sets a landed mean aside just before autograd adds to it.

    For strategies that must not send a mean again.
    """

    def hook(*_: Any) -> None:
        if compiler() is None:
            _set_aside(session, landings, bucket, i)
        else:
            _set_aside_beside_compiler(session, landings, bucket, i)

    return skipped(hook)


def _set_aside(session: Session, landings: Landings, bucket: FlatBucket, i: int) -> None:
    """Set what has landed in a parameter's `.grad` aside; see `before_gradient`."""
    on, grad = session.strategy.on, bucket.params[i].grad
    # 1. A mean landed here, and the loop has zeroed it without a step: under a delay it is
    #    lost.
    if bucket.given[i] is not None and (
        grad is None or not (landings.applied or bool(local_of(grad).any()))
    ):
        landings.warn_dropped(bucket.names[i])
    # 2. Set what has landed aside; an update, to which nothing can be added, is refused.
    if grad is None:
        bucket.held[i], bucket.given[i] = None, None  # the loop has dropped what there was
    elif bucket.holds_landed(i):
        if on.updates and bool(local_of(grad).any()):
            raise NotLandedError(
                f"backward() again while .grad of {bucket.names[i]!r} holds the update of "
                "the last landing, "
                f"to which no gradient can be added: with {on!r} call "
                "optimizer.step() and "
                "zero_grad() after each landing; to accumulate over n backward passes "
                "take every(n)"
            )
        bucket.hold(i)


@untraced
def _set_aside_beside_compiler(
    session: Session, landings: Landings, bucket: FlatBucket, i: int
) -> None:
    _set_aside(session, landings, bucket, i)


def _accumulator(param: nn.Parameter) -> Any:
    """Return the node that adds to `.grad`; unlike a hook of the tensor, one of it does not run for
    `torch.autograd.grad`."""
    with torch.enable_grad():
        return param.expand_as(param).grad_fn.next_functions[0][0]  # type: ignore[union-attr]


def _refuse_reentrant() -> None:
    """Raise in a reentrant checkpoint, which runs a backward pass within the backward pass, so that
    its end comes too early."""
    if called_within("backward", "utils/checkpoint.py"):
        raise AttachError(
            "reentrant activation checkpointing cannot be synchronised during backward; use "
            "checkpoint(…, use_reentrant=False)"
        )
