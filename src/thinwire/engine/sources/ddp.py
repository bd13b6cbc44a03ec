"""Take gradients from the buckets of DistributedDataParallel, by its communication hook.

DDP calls the hook with each of its buckets, in one order on all ranks, and copies what the hook
returns into `.grad` at the end of backward. A step:

    first bucket   begin
    each bucket    its buffer is a bucket of ours: it is scaled and flies in place
    last bucket    finish: the means are in the buffers, and DDP goes on

In its second pass DDP lays its buckets out anew, once, in the order in which gradients came. State
then follows parameter and element (`Syncer.relayout`).
"""

from __future__ import annotations

import weakref
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from thinwire.core import Schedule
from thinwire.engine.buckets import FlatBucket, plan
from thinwire.engine.layout import plain_name, roles
from thinwire.engine.replica import Replica
from thinwire.engine.session import Session
from thinwire.engine.sources.hooks import set_means_aside
from thinwire.engine.sources.source import GradientSource, Source
from thinwire.engine.steps import BackwardSteps
from thinwire.engine.wrappers import no_shards
from thinwire.errors import AttachError
from thinwire.kernels import fast
from thinwire.strategy import Strategy


class Relayable(Protocol):
    """A syncer, as the hook of DDP sees it."""

    @property
    def source(self) -> Source: ...
    @property
    def session(self) -> Session: ...

    def relayout(self) -> None: ...


class DdpBucket(FlatBucket):
    """A bucket that is lent DDP's own buffer for each step, and flies in it where it can.

    It has buffers of its own where a launch lands in a later step, or where DDP keeps the elements
    of a parameter in another order than the parameter's own (channels last).
    """

    _theirs: Tensor
    _gradients: list[Tensor]
    _absent: frozenset[int] = frozenset()
    landed = False
    """Whether a mean has landed in this step."""

    def make_buffers(self, count: int) -> None:
        if count > 1 or not all(param.is_contiguous() for param in self.params):
            super().make_buffers(count)

    def lend(self, theirs: Any) -> None:
        """Take the buffer of one of DDP's buckets for this step."""
        self._theirs, self.landed = theirs.buffer(), False
        self._gradients = theirs.gradients() if self._buffers else []  # each in its own shape
        # Where this pass has not come, DDP fills in zeros, or the mean that is still in `.grad`:
        # that is set aside, as where a gradient comes.
        absent = set()
        for i, (param, part) in enumerate(zip(self.params, self.spec.parts, strict=True)):
            if param.grad is None:
                absent.add(i)
            elif self.separate and self.holds_landed(i):
                absent.add(i)
                self.held[i], self.given[i] = param.grad.clone(), None
                self._theirs[part.begin : part.end].zero_()
        self._absent = frozenset(absent)

    def gradient(self, i: int) -> Tensor | None:
        return self._gradients[i]

    def _release(self, i: int, view: Tensor) -> None:
        """Leave `.grad` alone: DDP writes it."""

    def take_all(self, scale: float) -> None:
        if self._buffers:
            super().take_all(scale)
            return
        self.taken, self.missing = [True] * len(self.params), 0
        self.given = [None] * len(self.params)
        finite = fast.scaled(self._theirs, scale, self._theirs)
        self._unseen = finite is None
        if finite is False:
            self.first_bad = int(fast.first_nonfinite(self._theirs))

    def take_absent(self, scale: float) -> frozenset[int]:
        assert not self.missing, "DDP hands over every bucket in each step"
        return self._absent

    def grads(self) -> Tensor:
        return super().grads() if self._buffers else self._theirs

    def set_grads(self, flat: Tensor) -> None:
        # 1. a mean that flew in a buffer of its own goes into DDP's
        if self._buffers:
            for part, gradient in zip(self.spec.parts, self._gradients, strict=True):
                gradient.copy_(flat[part.begin : part.end].view(part.shape))
        # 2. what was set aside is added back
        for i, (part, held) in enumerate(zip(self.spec.parts, self.held, strict=True)):
            if held is None:
                continue
            own = flat[part.begin : part.end].view(part.shape)
            own = self._gradients[i] if self._buffers else own
            # Where no rank came, `.grad` stays: with bucket views it lies here.
            own.copy_(held) if i in self.silent else own.add_(held)
        self.held = [None] * len(self.params)
        self.landed = True

    def clear_grads(self) -> None:
        """Leave `.grad` alone: DDP writes it."""

    def note_landed(self, launched: bool) -> None:
        """Note which `.grad` has landed, when DDP has written them at the end of backward."""
        if launched and not self.landed:  # under a delay: nothing is there to step with yet
            for param in self.params:
                param.grad = None
        self.given = [param.grad if self.landed else None for param in self.params]


class DdpLayout:
    """A layout of buckets as a DDP module has them now; of local steps, it is our own.

    It keeps no reference that would keep the module alive, as that holds the hook.
    """

    sources: tuple[str, ...] = ("ddp",)

    def __init__(self, ddp: DistributedDataParallel, hook: DdpHook | None = None) -> None:
        self._ddp = weakref.ref(ddp)
        self.hook = hook or DdpHook()
        self.hook.layout = self

    @property
    def wrapper(self) -> DistributedDataParallel | None:
        return self._ddp()

    @property
    def left_out(self) -> frozenset[str]:
        ddp = self._ddp()
        return frozenset(ddp.parameters_to_ignore) if ddp is not None else frozenset()

    def plan(
        self, model: nn.Module, bucket_bytes: int, when: Schedule, wide: bool
    ) -> list[FlatBucket]:
        if wide:
            return plan(model, bucket_bytes, when, wide)
        role = roles(model)
        names = {id(param): plain_name(name) for name, param in model.named_parameters()}
        return [
            DdpBucket(index, [(names[id(p)], p, role[id(p)]) for p in params])
            for index, params in enumerate(self.runs())
        ]

    def runs(self) -> list[list[nn.Parameter]]:
        """List the parameters of each of DDP's buckets, which has no public way to ask for them.

        Not within a hook: DDP holds its lock there.
        """
        ddp = self._ddp()
        assert ddp is not None
        reducer: Any = ddp.reducer
        return [list(theirs.parameters()) for theirs in reducer._get_zeros_like_grad_buckets()]

    def gather(self, wanted: bool) -> None:
        """Let DDP call the hook, or be a shell: with no messages of its own in each step, for
        buffers or unused parameters."""
        if (ddp := self._ddp()) is not None:
            ddp.require_backward_grad_sync = wanted

    replica = Replica()

    def refusals(self, model: nn.Module, strategy: Strategy, overlap: str) -> list[str]:
        return no_shards(model)

    def name_parameters(self) -> None:
        """Do nothing: it always does."""

    def close(self) -> None:
        self.gather(True)

    @property
    def joins(self) -> bool:
        """Return whether the loop runs inside `ddp.join()`."""
        return bool(getattr(getattr(self._ddp(), "_join_config", None), "enable", False))

    @property
    def relaid(self) -> bool:
        """Return whether DDP has laid its buckets out for the second, and last, time."""
        return bool(getattr(self._ddp(), "_has_rebuilt_buckets", False))


class DdpHook:
    """What a DDP module calls with each bucket: it stays for good, whichever source takes them.

    On local steps it hands the buckets back as they are. A copy of it, in a copy of the module,
    has no syncer.
    """

    def __init__(self) -> None:
        self.layout: DdpLayout | None = None
        self._followed = False  # the last layout
        self.sync: Relayable | None = None
        self.source: DdpSource | None = None

    def __deepcopy__(self, _: Any) -> DdpHook:
        return DdpHook()

    def __reduce__(self) -> Any:
        return (DdpHook, ())

    @property
    def active(self) -> bool:
        """Return whether it serves a syncer."""
        return self.sync is not None and self.sync.source.active

    def run(self, theirs: Any) -> Future[Tensor]:
        """Take one of DDP's buckets, a `torch.distributed.GradBucket`."""
        if not self.active:
            raise AttachError(
                "this DistributedDataParallel has a hook of Thinwire without a syncer (closed, or "
                "of a module that was copied): nothing would be averaged. Call ddp_hook again, or "
                "wrap the model in a new DistributedDataParallel"
            )
        if self.source is None:
            done: Future[Tensor] = Future(devices=_devices(theirs.buffer()))
            done.set_result(theirs.buffer())
            return done
        # A rank that has run out of data answers in `join()`, outside of any pass: there DDP's lock
        # is free, and no forward pass has looked.
        if theirs.index() == 0 and not _in_backward():
            self._follow()
        return self.source.take_theirs(theirs)

    def after_forward(self, _: nn.Module) -> None:
        """Follow DDP's second layout, after the forward pass that it has made it in."""
        if self.layout is None or not self.active or not torch.is_grad_enabled():
            return
        if self.source is None and self.layout.joins:
            raise AttachError(
                "ddp.join() knows nothing of local steps, whose rounds would never end: leave it, "
                "and call sync.skip_step() on a rank without data"
            )
        if not self._followed and self.layout.relaid:
            self._followed = True
            self._follow()

    def _follow(self) -> None:
        sync, layout = self.sync, self.layout
        if self.source is None or sync is None or layout is None:
            return
        ours = [[id(param) for param in bucket.params] for bucket in sync.session.buckets]
        if ours == [[id(param) for param in run] for run in layout.runs()]:
            return
        sync.relayout()
        # With bucket views DDP has put other tensors, of the same values, in the place of `.grad`.
        for bucket in sync.session.buckets:
            for i, param in enumerate(bucket.params):
                if bucket.given[i] is not None:
                    bucket.given[i] = param.grad


class DdpSource(GradientSource):
    """A source that takes each of DDP's buckets as its communication hook brings it."""

    def __init__(self, session: Session, steps: BackwardSteps) -> None:
        super().__init__(session, steps)
        layout = session.options.layout
        assert isinstance(layout, DdpLayout)
        self._hook, self._active = layout.hook, True
        self._waiting: list[tuple[Future[Tensor], Tensor]] = []
        self._nodes, self._handles = set_means_aside(session, steps.landings)
        self._hook.source = self

    @property
    def active(self) -> bool:
        return self._active

    def close(self) -> None:
        self._active = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._nodes.clear()
        if self._hook.source is self:
            self._hook.source = None

    def skip(self) -> None:
        raise AttachError(
            "skip_step() on a DistributedDataParallel: its own messages would find no partner on "
            "this rank. Run the loop inside `with ddp.join():`, which gives ranks without data "
            "their part"
        )

    @torch.no_grad()
    def take_theirs(self, theirs: Any) -> Future[Tensor]:
        """Take one of DDP's buckets; with the last one of a pass all means are there.

        Returns:
            A future of the mean, which DDP waits for at the end of backward.
        """
        # 1. the first bucket begins a step
        index = theirs.index()
        if (index == 0) == self._steps.clock.within:
            raise AttachError(
                f"DistributedDataParallel handed over bucket {index} "
                f"{'again within a step' if index == 0 else 'first'}: an earlier backward() failed "
                "half-way. Wrap the model anew"
            )
        if index == 0:
            self.begin()
        # 2. each flies as it comes
        bucket, params = self.session.buckets[index], theirs.parameters()
        assert isinstance(bucket, DdpBucket)
        if len(params) != len(bucket.params) or any(
            a is not b for a, b in zip(params, bucket.params, strict=True)
        ):
            raise AttachError(
                f"DistributedDataParallel laid its buckets out anew within backward(), which "
                f"torch {torch.__version__} was not seen to do: bucket {index} holds other "
                "parameters"
            )
        buffer = theirs.buffer()
        bucket.lend(theirs)
        self.take_all(bucket)
        future: Future[Tensor] = Future(devices=_devices(buffer))
        self._waiting.append((future, buffer))
        # 3. the last one ends the step
        if theirs.is_last():
            launched = self._steps.launches
            self.finish()
            for waiting, mean in self._waiting:
                waiting.set_result(mean)
            self._waiting.clear()
            if _in_backward():
                self._after_ddp(lambda: self._note_landed(launched))
        return future

    def _note_landed(self, launched: bool) -> None:
        for bucket in self.session.buckets:
            assert isinstance(bucket, DdpBucket)
            bucket.note_landed(launched)

    @staticmethod
    def _after_ddp(call: Any) -> None:
        """Run a call after DDP has written `.grad`: it does so in a callback at the end of this
        pass, which it adds after this hook. One that is added by a callback comes last."""
        engine = torch.autograd.Variable._execution_engine
        engine.queue_callback(lambda: engine.queue_callback(call))


def _in_backward() -> bool:
    return bool(torch._C._current_graph_task_id() != -1)


def _devices(buffer: Tensor) -> list[int | str | torch.device]:
    return [buffer.device] if buffer.is_cuda else []
