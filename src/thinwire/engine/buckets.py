"""Gather parameters into flat buckets worth sending, with a view of each in a gradient buffer."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

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
from thinwire.engine.shards import local_of
from thinwire.errors import AttachError
from thinwire.kernels import fast, memory
from thinwire.strategy import Strategy
from thinwire.when import every

AT_ONCE = 256 << 10
"""Bytes of gradients that are moved into a bucket together: what a core's cache still holds."""


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
        # 5. Parameters whose gradients are taken and not moved yet.
        self._waiting: list[int] = []
        self._waiting_bytes = 0
        self._nbytes = [part.numel * self._spec.dtype.itemsize for part in self._spec.parts]

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
        self._waiting, self._waiting_bytes = [], 0
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
        """Take parameter i's gradient, times `scale`, for the buffer; none counts as zeros.

        Small ones are moved some at a time, the last of them when the bucket is full.
        """
        # Count it once, however often it is taken in this step.
        if not self.taken[i]:
            self.taken[i] = True
            self.missing -= 1
        self.given[i] = None
        self._waiting.append(i)
        self._waiting_bytes += self._nbytes[i]
        if self._waiting_bytes >= AT_ONCE or not self.missing:
            self._move(scale)

    @torch.no_grad()  # under create_graph a gradient has a graph, which is not sent
    def _move(self, scale: float) -> None:
        """Move the gradients that wait, times `scale`, into the buffer."""
        waiting, self._waiting, self._waiting_bytes = sorted(self._waiting), [], 0
        grads = [self.gradient(i) for i in waiting]
        begin = 0
        # Neighbours in the buffer are moved at once, where they are many and alike.
        for end in range(1, len(waiting) + 1):
            if end < len(waiting) and waiting[end] == waiting[end - 1] + 1:
                continue
            run = grads[begin:end]
            plain = [grad for grad in run if grad is not None and self._plain(grad)]
            if len(plain) == len(run) > 1:
                self._move_run(waiting[begin], waiting[end - 1], plain, scale)
            else:
                for i, grad in zip(waiting[begin:end], run, strict=True):
                    self._move_one(i, grad, scale)
            begin = end

    def _plain(self, grad: Tensor) -> bool:
        """Return whether a gradient can be laid beside others as it is."""
        return grad.dtype is self._spec.dtype and grad.layout is torch.strided

    def _move_run(self, first: int, last: int, grads: list[Tensor], scale: float) -> None:
        parts, views = self._spec.parts, self._views[self._now]
        begin, end = parts[first].begin, parts[last].end
        flat = torch._utils._flatten_dense_tensors(grads)
        self._scale(flat, scale, self._buffers[self._now][begin:end], begin)
        for i in range(first, last + 1):
            self._release(i, views[i])

    def _move_one(self, i: int, grad: Tensor | None, scale: float) -> None:
        view = self._views[self._now][i]
        if grad is None:
            view.zero_()
            return
        if grad.is_sparse:
            raise AttachError(
                f"{self.names[i]!r} has a sparse gradient, which has no place in a flat bucket; "
                "build its embedding with sparse=False"
            )
        self._scale(grad, scale, view, self._spec.parts[i].begin)
        self._release(i, view)

    def _scale(self, grads: Tensor, scale: float, out: Tensor, begin: int) -> None:
        """Copy gradients, scaled, to element `begin` of the buffer; the copy looks at each value
        anyway, so it may report whether all are finite."""
        finite = fast.scaled(grads, scale, out)
        if finite is None:
            self._unseen = True
        elif not finite and self.first_bad < 0:
            self.first_bad = begin + int(fast.first_nonfinite(out.reshape(-1)))

    def _release(self, i: int, view: Tensor) -> None:
        """Free a gradient that has been moved: `.grad` is its place in the buffer from here on."""
        self.params[i].grad = view

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
