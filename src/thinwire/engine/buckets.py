"""Gather parameters into flat buckets worth sending, with a view of each in a gradient buffer."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from thinwire.core import (
    Codec,
    Driver,
    Part,
    RankContext,
    Route,
    Schedule,
    Spec,
    State,
)
from thinwire.engine.airborne import Airborne, Slice
from thinwire.engine.layout import Named, runs_of
from thinwire.engine.replica import Replica
from thinwire.engine.shards import local_of
from thinwire.engine.wrappers import no_shards
from thinwire.errors import AttachError
from thinwire.kernels import fast, memory
from thinwire.strategy import Strategy
from thinwire.when import every


class FlatBucket:
    """A flat run of some parameters; a `thinwire.core.Bucket`."""

    def __init__(self, index: int, named: Sequence[Named], wide: bool = False) -> None:
        self.index = index
        # 1. What the bucket holds: parameters side by side, at element offsets `begin` to `end`.
        self.names = [name for name, _, _ in named]
        self.params = [param for _, param, _ in named]
        parts, at = [], 0
        for each in named:
            parts.append(self.part_of(each, at))
            at = parts[-1].end
        self._spec = Spec(tuple(parts), 0, at, self.params[0].dtype)
        if wide:  # differences of 16-bit parameters do not fit in 16 bits
            self._spec = Spec(tuple(parts), 0, at, self._spec.work)
        # 2. What is set when the bucket is built: world, schedule, slices and the target's state.
        self.device, self.dtype = self.params[0].device, self.params[0].dtype
        self.state = State()
        self.world = 1
        self.when: Schedule = every(1)
        self.slices: list[Slice] = []
        self.air: deque[Airborne] = deque()
        # 3. Whose gradients there are, and what of `.grad` has landed.
        self.silent: frozenset[int] = frozenset()
        """Parameters whose gradient no rank had at the last landing: their `.grad` stays as it
        was."""
        self.separate = False
        """A mean that has landed in `.grad` is kept out of the next launch and added back at its
        landing."""
        self.given: list[Tensor | None] = [None] * len(self.params)
        """By parameter: what the last landing put into `.grad`, until a gradient is added to it."""
        self.held: list[Tensor | None] = [None] * len(self.params)
        """By parameter: a mean that landed before the gradients that are gathered now."""
        self.first_bad = -1
        self._unseen = True  # some values were not looked at as they were copied
        # 4. Gradient buffers, one for each flight that may be in the air; `_now` is being filled.
        self._buffers: list[Tensor] = []
        self._views: list[list[Tensor]] = []
        self._now = 0
        self.taken = [False] * len(self.params)
        self.missing = len(self.params)

    @property
    def spec(self) -> Spec:
        return self._spec

    def part_of(self, named: Named, at: int) -> Part:
        """Describe what this rank has of a parameter, to lie from element `at` on."""
        name, param, role = named
        return Part(name, tuple(param.shape), at, role)

    def cut(
        self,
        slice_bytes: int | None,
        codec: Codec,
        route: Route,
        ctx: RankContext,
        lanes: int,
        first: int,
    ) -> None:
        """Make the slices, at the codec's grain, and their state."""
        for i, span in enumerate(spans(self.spec, slice_bytes, codec)):
            with torch.device(self.device):
                state = route.init(codec, span, ctx)
            # Lanes go round over the slices of all buckets that fly together: `first` is the count
            # so far.
            self.slices.append(Slice(span, (first + i) % lanes, state))

    # -- parameters

    def refuse_converted(self) -> None:
        """Raise where a parameter is of another type or on another device than at attach."""
        for part, param in zip(self.spec.parts, self.params, strict=True):
            if param.dtype is not self.dtype or param.device != self.device:
                raise AttachError(
                    f"{part.name!r} was {self.dtype} on {self.device} at attach and is "
                    f"{param.dtype} on {param.device} now: convert the "
                    "model before attach, or close the syncer and attach again"
                )

    def weights(self) -> Tensor:
        flat = memory.empty(self.spec.numel, self.spec.work, self.device)
        for i, part in enumerate(self.spec.parts):
            flat[part.begin : part.end] = self.values(i).reshape(-1)
        return flat

    def values(self, i: int) -> Tensor:
        """Return what this rank has of parameter i, in the parameter's own memory."""
        return self.params[i].detach()

    @torch.no_grad()
    def set_weights(self, flat: Tensor) -> None:
        for i, part in enumerate(self.spec.parts):
            self.values(i).copy_(flat[part.begin : part.end].view(part.shape))

    def mask(self) -> Tensor | None:
        if all(part.mask is None for part in self.slices):
            return None
        whole = [
            torch.ones(part.spec.numel, dtype=torch.bool, device=self.device)
            if part.mask is None
            else part.mask()
            for part in self.slices
        ]
        return torch.cat(whole)

    # -- gradients

    def make_buffers(self, count: int) -> None:
        """Flat gradient buffers: one for each flight that may be in the air."""
        for _ in range(count):
            buffer = torch.zeros(self.spec.numel, dtype=self.spec.dtype, device=self.device)
            self._buffers.append(buffer)
            self._views.append(
                [buffer[part.begin : part.end].view(part.shape) for part in self.spec.parts]
            )

    def turn(self) -> None:
        """Go on to the next buffer, before the hooks fill it."""
        if self._buffers:
            self._now = (self._now + 1) % len(self._buffers)
        self.taken = [False] * len(self.params)
        self.missing = len(self.params)
        self.first_bad, self._unseen = -1, False

    def hold(self, i: int) -> None:
        """Set aside what has landed in parameter i's `.grad`, so that what comes next is counted by
        itself."""
        grad, self.given[i] = self.params[i].grad, None
        # a copy, as the buffer that it lies in is filled anew
        self.held[i] = None if grad is None else local_of(grad).clone()
        self.params[i].grad = None

    def take_absent(self, scale: float) -> frozenset[int]:
        """Fill the buffer where this backward pass has not come, and return the parameters without
        a gradient of their own here."""
        absent = set()
        for i, param in enumerate(self.params):
            if self.taken[i]:
                continue
            landed = self.holds_landed(i)
            if param.grad is None or landed:
                absent.add(i)
            if landed:
                mean = param.grad
                self.hold(i)
                if not self.separate:  # it is part of the next mean, as where backward adds to it
                    param.grad = mean
            self.take(i, scale)
        return frozenset(absent)

    def holds_landed(self, i: int) -> bool:
        """Return whether parameter i's `.grad` is what has landed; what the loop has put in its
        place is not."""
        return self.given[i] is not None and self.params[i].grad is self.given[i]

    def take_all(self, scale: float) -> None:
        """Move every gradient, times `scale`, into the buffer."""
        for i in range(len(self.params)):
            self.take(i, scale)

    def gradient(self, i: int) -> Tensor | None:
        """Return this rank's gradient of parameter i, if there is one."""
        return self.params[i].grad

    def give(self, i: int, grad: Tensor | None) -> None:
        """Put values, or none, into parameter i's `.grad`."""
        self.params[i].grad = grad

    def take(self, i: int, scale: float) -> None:
        """Move parameter i's gradient, times `scale`, into the buffer; none counts as zeros."""
        mine, view = self.gradient(i), self._views[self._now][i]
        # 1. Count it once, however often it is taken in this step.
        self.missing -= not self.taken[i]
        self.taken[i] = True
        self.given[i] = None
        if mine is None:
            view.zero_()
            return
        # 2. Copy it into the buffer, scaled; the copy looks at each value anyway, so it may report
        #    whether all are finite.
        grad = mine.detach()  # under create_graph it has a graph, which is not sent
        if grad.is_sparse:
            raise AttachError(
                f"{self.names[i]!r} has a sparse gradient, which has no place in a flat bucket; "
                "build its embedding with sparse=False"
            )
        finite = fast.scaled(grad, scale, view)
        if finite is None:
            self._unseen = True
        elif not finite and self.first_bad < 0:
            self.first_bad = self.spec.parts[i].begin + int(fast.first_nonfinite(view.reshape(-1)))

    def grads(self) -> Tensor:
        return self._buffers[self._now]

    def first_nonfinite(self, x: Tensor) -> int | Tensor:
        """Return the index of the first value of a launch that is not finite, or -1.

        On a device it is a tensor, which is not waited for.
        """
        if not self._unseen:
            return self.first_bad
        first = fast.first_nonfinite(x)
        return first if first.is_cuda else int(first)

    def name_at(self, index: int) -> str:
        """Return the name of the parameter that an element of the bucket belongs to."""
        return next(part.name for part in self.spec.parts if part.begin <= index < part.end)

    def set_grads(self, flat: Tensor) -> None:
        # A total lands in the buffer that its launch was read from. Under a delay that is not the
        # one that is being filled now.
        which = next(
            i for i, buffer in enumerate(self._buffers) if buffer.data_ptr() == flat.data_ptr()
        )
        for i, view in enumerate(self._views[which]):
            held, self.held[i] = self.held[i], None
            # No rank had a gradient: `.grad` is what it was before, also where that is `None`.
            if i in self.silent:
                self.give(i, held)
            else:
                # `.grad` is a view of the buffer, not a copy. What was set aside is added back.
                self.give(i, view if held is None or not self.separate else view.add_(held))
            self.given[i] = self.params[i].grad

    def clear_grads(self) -> None:
        for param in self.params:
            param.grad = None
        self.given = [None] * len(self.params)

    def restore(self, totals: Sequence[Tensor]) -> list[Tensor]:
        """Put totals that a checkpoint brought, oldest first, where their flights would have
        landed."""
        if not self._buffers:
            return [total.to(self.device) for total in totals]
        # The buffers turn as launches do: the oldest total goes into buffer 0.
        for buffer, total in zip(self._buffers, totals, strict=False):
            buffer.copy_(total)
        self._now = (len(totals) - 1) % len(self._buffers)
        return self._buffers[: len(totals)]


def build(
    buckets: list[FlatBucket],
    strategy: Strategy,
    how: Route,
    driver: Driver,
    lanes: int,
    slice_bytes: int | None,
    seed: int,
) -> list[FlatBucket]:
    """Cut the planned buckets into slices, and make the state of codecs, routes and target."""
    on_gradients = strategy.on.clock == "backward"
    ctx = RankContext(driver.rank, tuple(range(driver.world)), 0, seed)
    # lanes are dealt to the slices of each fragment, as those fly together
    flights = [0] * strategy.when.fragments
    for bucket in buckets:
        fragment = bucket.index % len(flights)
        bucket.cut(slice_bytes, strategy.what, how, ctx, lanes, flights[fragment])
        flights[fragment] += len(bucket.slices)
        if on_gradients:
            bucket.make_buffers(strategy.when.depth)
        bucket.world, bucket.when = driver.world, strategy.when
        bucket.state = strategy.on.init(bucket)
    return buckets


def spans(spec: Spec, slice_bytes: int | None, codec: Codec) -> list[Spec]:
    """Cut a bucket into slices of about so many bytes, at the codec's grain."""
    ways = -(-spec.numel * spec.dtype.itemsize // slice_bytes) if slice_bytes else 1
    return [span for span in spec.cut(ways, codec.traits.grain) if span.numel] or [spec]


def plan(model: nn.Module, bucket_bytes: int, when: Schedule, wide: bool) -> list[FlatBucket]:
    """Plan the buckets of every parameter that trains, as many in each fragment of the schedule.

    Args:
        wide: values fly in float32, whatever the parameters' type.

    Raises:
        AttachError: fewer parameters than fragments, or too few to give each of them some of each
            type.
    """
    layout = runs_of(model, bucket_bytes, when)
    return [FlatBucket(index, run, wide) for index, run in enumerate(layout)]


class Layout(Protocol):
    """A layout of a model's buckets, by whoever gathers its gradients."""

    @property
    def wrapper(self) -> nn.Module | None:
        """Return the data-parallel module that is meant to be around the model, if one is."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Return which sources go with it."""

    @property
    def left_out(self) -> frozenset[str]:
        """Return the names of parameters that train and that no rank sends, as the user wants."""

    def plan(
        self, model: nn.Module, bucket_bytes: int, when: Schedule, wide: bool
    ) -> list[FlatBucket]:
        """Plan the buckets of every other parameter that trains; see `plan`."""

    def gather(self, wanted: bool) -> None:
        """Have the framework gather gradients, or leave them alone: local steps need none."""

    @property
    def replica(self) -> Replica:
        """Return the ranks that hold one replica's shards."""

    def refusals(self, model: nn.Module, strategy: Strategy, overlap: str) -> list[str]:
        """Return why it cannot lay the model out under this strategy."""

    def name_parameters(self) -> None:
        """Have the model name the parameters that the optimiser steps."""

    def close(self) -> None:
        """Leave the framework as it was."""


class OwnLayout:
    """The layout of a model whose gradients Thinwire itself gathers; it has no state."""

    wrapper: nn.Module | None = None
    sources: tuple[str, ...] = ("hooks", "manual")
    left_out: frozenset[str] = frozenset()

    def plan(
        self, model: nn.Module, bucket_bytes: int, when: Schedule, wide: bool
    ) -> list[FlatBucket]:
        return plan(model, bucket_bytes, when, wide)

    replica = Replica()

    def refusals(self, model: nn.Module, strategy: Strategy, overlap: str) -> list[str]:
        return no_shards(model)

    def gather(self, wanted: bool) -> None:
        """Do nothing: nobody but the source gathers gradients."""

    def name_parameters(self) -> None:
        """Do nothing: it always does."""

    def close(self) -> None:
        """Do nothing: nothing was changed."""
