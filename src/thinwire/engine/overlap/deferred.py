"""Land means in the next forward pass: `backward()` and `optimizer.step()` wait for nothing.

The mean of a bucket lands, and its parameters take their step, just before the first module that
holds them runs again. Phases:

    hold     backward ends: means are in the air, `.grad` holds stand-ins that refuse to be read
    step     optimizer.step(): the rates and other settings of this step are noted
    reach    a module is about to run: the buckets of its parameters land and are stepped
    sweep    the next backward pass begins: buckets that no module has needed land

The sums are those of an ordinary step, in the same order, so the weights are the same bits.
"""

from __future__ import annotations

import functools
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from thinwire.core import Stage
from thinwire.engine.buckets import FlatBucket
from thinwire.engine.compiled import untraced
from thinwire.engine.frames import called_within
from thinwire.engine.landings import Landings
from thinwire.engine.overlap.partial_step import settings_of, step_some
from thinwire.engine.overlap.priority import busy, by_need
from thinwire.engine.overlap.stand_in import Late
from thinwire.engine.session import Session
from thinwire.errors import AttachError, NotLandedError

FIRST_PLAN = 4
"""The launch at which the order is planned, and again whenever their number has doubled."""


class LandingHook:
    """A module's hook that belongs to this model alone: a copy of the module gets one that does
    nothing.

    Before a module is copied or saved, what is pending lands, so that the copy has taken the last
    step, too. A module's parameters are copied before its hooks are, so those of a copy are written
    once more.
    """

    def __init__(self, deferred: Deferred | None, call: Callable[..., None] | None) -> None:
        self._deferred, self._call = deferred, call

    @untraced
    def __call__(self, *args: Any) -> None:
        if self._call is not None:
            self._call(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> LandingHook:
        if self._deferred is not None:
            self._deferred.refresh(memo)
        return LandingHook(None, None)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._deferred is not None:
            self._deferred.refuse_stale()
        return LandingHook, (None, None)


class Deferred:
    """A syncer's launches of one backward pass, which land in the next forward pass.

    Args:
        session: what was attached.
        landings: writes the means.
        first_needed: plan the order of slices by when the forward pass needs them.
    """

    def __init__(self, session: Session, landings: Landings, first_needed: bool) -> None:
        self._session, self._landings, self._first_needed = session, landings, first_needed
        self._pending: dict[int, FlatBucket] = {}
        # Each group's settings at `optimizer.step()`, to be used when its parameters are stepped;
        # `None`: no step has been called since backward.
        self._then: list[dict[str, Any]] | None = None
        self._versions: dict[int, int] = {}  # torch's write counters of parameters at that step
        # Landed by the last sweep: a gradient for one of them is from weights without their step.
        self._swept: set[int] = set()
        self._ran: set[int] = set()  # modules that have run, until the first landing
        self._watching = True
        # With a parameter that is used while no module that holds it runs: they land first of all.
        self._orphans: set[int] = set()
        # By bucket, its rank in the first forward pass: 0 is needed first.
        self._needed: dict[int, int] = {}
        self._launches = 0
        # Of the last launch: seconds of backward until each bucket was full, and its bytes.
        self._begun = 0.0
        self._full = [0.0] * len(session.buckets)
        self._stages: list[Stage] = []  # of what has landed since the last launch
        self._sent = [0.0] * len(session.buckets)
        self._owners: dict[int, list[nn.Module]] = defaultdict(list)
        self._hooks: list[Any] = []
        self._hook_modules()
        optimizer = session.optimizer
        self._own_step: Any = optimizer.__dict__.get("step")
        self._step: Any = optimizer.step
        optimizer.step = self._wrapped(optimizer)  # type: ignore[method-assign]

    def close(self) -> None:
        """Take the hooks off; the optimiser steps as it did."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._pending.clear()
        optimizer = self._session.optimizer
        ours = getattr(optimizer.__dict__.get("step"), "__func__", None) is self._function
        if ours:  # else somebody has wrapped it since: it hands on, as nothing is pending
            if self._own_step is None:
                del optimizer.step
            else:
                optimizer.step = self._own_step  # type: ignore[method-assign]

    # -- the syncer's side

    def begin(self, launching: bool) -> tuple[int, ...] | None:
        """Land what no module has needed, as a backward pass begins.

        Returns:
            The order of slices, where it is planned anew: each bucket's number, once for each of
            its slices.

        Raises:
            NotLandedError: the last means have been asked for by no `optimizer.step()`.
        """
        # 1. Sweep: land what no module has needed. A mean that no step has used would be lost.
        if self._pending and self._then is None:
            raise NotLandedError(
                "backward() again before optimizer.step(): the means of the last pass would be "
                "lost. Step once after each launch"
            )
        self._swept = set(self._pending)
        self.land()
        # 2. Begin to time this launch; plan the order at launches 4, 8, 16, …, as all ranks count.
        order = None
        if launching:
            self._launches += 1
            planned = self._launches >= FIRST_PLAN and self._launches.bit_count() == 1
            if self._first_needed and planned:
                order = self._plan()
            self._stages.clear()
            self._sent = [0.0] * len(self._sent)
            self._full = [float("inf")] * len(self._full)
            self._begun = time.perf_counter()
        return order

    def filled(self, bucket: FlatBucket, i: int) -> None:
        """A gradient has come to a bucket; note when the last one does.

        Raises:
            AttachError: it was computed from weights that had not been stepped.
        """
        if bucket.index in self._swept:
            raise AttachError(
                f"{bucket.names[i]!r} was used in this forward pass, but no module that holds it "
                "ran before, so its last step had not been "
                "taken. Call the module that holds it, or sync.land() before the forward pass, or "
                "attach with overlap='backward'"
            )
        if not bucket.missing:
            self._full[bucket.index] = time.perf_counter() - self._begun

    def hold(self, buckets: Iterable[FlatBucket]) -> None:
        """Leave the means of a backward pass in the air."""
        # 1. Once, when the first means land: a bucket is an orphan if one of its parameters has
        #    only owners that did not run.
        if self._watching:
            self._watching = False
            for bucket in self._session.buckets:
                if any(
                    all(id(owner) not in self._ran for owner in self._owners[id(param)])
                    for param in bucket.params
                ):
                    self._orphans.add(bucket.index)
        # 2. Parameters that backward has not reached filled their buckets at its end.
        now = time.perf_counter() - self._begun
        self._full = [min(each, now) for each in self._full]
        # 3. Put stand-ins into `.grad`, which raise an error where the loop reads them.
        self._pending = {bucket.index: bucket for bucket in buckets if bucket.air}
        self._then = None
        for bucket in self._pending.values():
            for i, param in enumerate(bucket.params):
                param.grad = None if i in bucket.silent and not bucket.taken[i] else Late(param)

    @torch.no_grad()
    def land(self, indices: Iterable[int] | None = None) -> None:
        """Land buckets that are pending (all of them by default) and take their part of the step,
        if there was one."""
        wanted = (
            list(self._pending)
            if indices is None
            else [index for index in indices if index in self._pending]
        )
        if not wanted:
            return
        # The forward pass may run under inference mode or autocast; the step must not.
        kind = self._session.device.type
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(kind, enabled=False):
            self._land(wanted)

    def _land(self, wanted: Iterable[int]) -> None:
        for index in wanted:
            bucket = self._pending.pop(index)
            handles = bucket.air[0].handles
            with self._session.meter.working():
                self._landings.put([bucket])
            self._stages += [stage for handle in handles for stage in handle.stages]
            self._sent[index] += sum(handle.sent_bytes for handle in handles)
            if self._then is not None:
                self._refuse_written(bucket)
                self._take_step({id(param) for param in bucket.params})
                with self._session.meter.working():
                    bucket.clear_grads()

    def drop(self) -> None:
        """Forget what is pending: another state is about to be loaded."""
        for bucket in self._pending.values():
            bucket.clear_grads()
        self._pending.clear()

    # -- the forward pass

    def _hook_modules(self) -> None:
        session = self._session
        bucket_of = {
            id(param): bucket.index for bucket in session.buckets for param in bucket.params
        }
        # Before a module runs, and before state is saved or loaded, its parameters take their step.
        for module in session.model.modules():
            own = [
                id(param) for param in module.parameters(recurse=False) if id(param) in bucket_of
            ]
            for param in own:
                self._owners[param].append(module)
            held = dict.fromkeys(bucket_of[param] for param in own)
            if held or module is session.model:
                hook = LandingHook(self, functools.partial(self._reached, held))
                self._hooks.append(module.register_forward_pre_hook(hook, prepend=True))
                self._hooks.append(
                    module.register_state_dict_pre_hook(LandingHook(self, self._land_stepped))
                )
                self._hooks.append(
                    module.register_load_state_dict_pre_hook(LandingHook(self, self._land_stepped))
                )
        optimizer = session.optimizer
        self._hooks += [
            optimizer.register_state_dict_pre_hook(self._land_stepped),
            optimizer.register_load_state_dict_pre_hook(self._land_stepped),
        ]

    def _reached(self, held: Iterable[int], module: nn.Module, _: Any) -> None:
        # Until the first landing, note which modules run, and when each bucket is needed first.
        if self._watching:
            self._ran.add(id(module))
            for index in held:
                self._needed.setdefault(index, len(self._needed))
        # Without a step since backward, this is another forward pass before it: nothing lands.
        if self._pending and self._then is not None:
            self.land(self._orphans if module is self._session.model else ())
            self.land(held)

    def _land_stepped(self, *_: Any) -> None:
        if self._then is not None:
            self.land()

    # -- copies

    @torch.no_grad()
    def refresh(self, memo: dict[int, Any]) -> None:
        """Land what has been stepped, and write it into the parameters that a `deepcopy` under way
        has copied already."""
        if not self._pending or self._then is None:
            return
        late = [param for bucket in self._pending.values() for param in bucket.params]
        self.land()
        for param in late:
            if isinstance(own := memo.get(id(param)), Tensor):
                own.copy_(param)

    def refuse_stale(self) -> None:
        """Land what has been stepped; `torch.save` reads the values of parameters only after that.

        Raises:
            NotLandedError: something was still to land, and another pickler than `torch.save` has
                read the old values.
        """
        if not self._pending or self._then is None:
            return
        self.land()
        if not called_within("_save", "torch/serialization.py"):
            raise NotLandedError(
                "pickling a model whose last step had not landed: its old weights are in the "
                "pickle already. Call sync.land() before, or "
                "use torch.save"
            )

    # -- the optimiser

    def _wrapped(self, optimizer: Optimizer) -> MethodType:
        """`optimizer.step` as a method with the old one's marks, so that a scheduler finds what it
        looks for, before or after us."""

        @untraced
        @functools.wraps(self._step)
        def step(_: Optimizer, *args: Any, **kwargs: Any) -> Any:
            return self._note_step(*args, **kwargs)

        step.thinwire_deferred = True  # type: ignore[attr-defined]
        self._function = step
        return MethodType(step, optimizer)

    def _note_step(self, *args: Any, **kwargs: Any) -> Any:
        if not self._pending:
            return self._step(*args, **kwargs)
        # 1. Refuse what needs gradients now: a closure, or a second step with the same means.
        if any(value is not None for value in (*args, *kwargs.values())):
            raise AttachError(
                "optimizer.step(closure) with landing in the forward pass: the closure would run "
                "a pass of its own; call step() without"
            )
        if self._then is not None:
            raise NotLandedError(
                "optimizer.step() twice after one backward pass: its means land once, in the next "
                "forward pass"
            )
        # 2. Note the settings, which a scheduler may change, and torch's write counters of weights.
        self._then = [settings_of(group) for group in self._session.optimizer.param_groups]
        pending = {id(param) for bucket in self._pending.values() for param in bucket.params}
        self._versions = {
            id(param): param._version
            for bucket in self._pending.values()
            for param in bucket.params
        }
        # 3. Parameters of no pending bucket take their step now.
        others = {
            id(param) for group in self._session.optimizer.param_groups for param in group["params"]
        } - pending
        if others:
            self._take_step(others)
        # 4. A scheduler warns where this mark is missing, as if no step had been taken.
        self._session.optimizer._opt_called = True  # type: ignore[attr-defined]  # what a scheduler looks for
        return None

    def _refuse_written(self, bucket: FlatBucket) -> None:
        """Raise where the loop has written weights between `optimizer.step()` and the forward pass
        that takes the step."""
        for name, param in zip(bucket.names, bucket.params, strict=True):
            if param._version != self._versions.get(id(param), param._version):
                raise AttachError(
                    f"{name!r} was written after optimizer.step() and before its step was taken, "
                    "which is in this forward pass, so the "
                    "step would be added to it. Call sync.land() before writing weights, or "
                    "attach with overlap='backward'"
                )

    def _take_step(self, params: set[int]) -> None:
        """Take the optimiser's step of some parameters, with the settings of the time when it was
        asked for."""
        assert self._then is not None
        step_some(self._session.optimizer, self._step, params, self._then)

    # -- priority

    def _plan(self) -> tuple[int, ...]:
        """Agree on the order of slices by the last launch's times: the latest that a bucket was
        full anywhere, the mean of the wire."""
        buckets = self._session.buckets
        # 1. This rank's figures: seconds of wire a slice, by its bytes, and the order of need.
        wire, whole = busy(self._stages), sum(self._sent) or 1.0
        takes = [
            wire * own / whole / len(bucket.slices)
            for own, bucket in zip(self._sent, buckets, strict=True)
        ]
        needed = [
            -1 if bucket.index in self._orphans else self._needed.get(bucket.index, len(buckets))
            for bucket in buckets
        ]
        # 2. Exchange them, so that every rank plans by the same numbers.
        by_rank = [
            json.loads(each)
            for each in self._session.all_gather(
                json.dumps([self._full, takes, needed]).encode(), "the order of slices"
            )
        ]
        # 3. A sum waits for the last rank's bucket: take the latest; of the order of need rank 0's.
        full = [max(each) for each in zip(*(other[0] for other in by_rank), strict=True)]
        means = [
            sum(each) / len(by_rank) for each in zip(*(other[1] for other in by_rank), strict=True)
        ]
        return by_need(full, means, [len(bucket.slices) for bucket in buckets], by_rank[0][2])
