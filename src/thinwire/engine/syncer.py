"""The syncer: hooks that know when a gradient is there, ticks that say what to do, flights launched
and landed.

One backward pass (or optimiser step) is one step of the schedule:
    begin   the step's tick is known; on gradients, the buffers turn
    launch  a bucket that is full (or due) is read and its slices fly
    land    what is due is waited for and written
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from thinwire.core import Tick
from thinwire.engine import agree, checkpoint
from thinwire.engine.buckets import FlatBucket
from thinwire.engine.checks import Checks, comparable
from thinwire.engine.flights import Flights
from thinwire.engine.forward import Deferred
from thinwire.engine.guards import Watch
from thinwire.engine.hooks import Frozen, Hooks
from thinwire.engine.landings import Landings
from thinwire.engine.meter import Report
from thinwire.engine.options import Options, buffer_places
from thinwire.engine.pace import Pace
from thinwire.engine.priority import by_index
from thinwire.engine.trace import Trace, recording
from thinwire.engine.weights import Weights
from thinwire.errors import AttachError
from thinwire.when import by_speed


class Syncer:
    """A strategy at work on one model and optimiser: what `thinwire.attach` returns. Close it, or
    use it as a context."""

    anchors_itself: ClassVar[bool] = True
    """Before its first step it may take other weights for its anchor, as all ranks then do."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        flights: Flights,
        weights: Weights,
        options: Options,
    ) -> None:
        self.model, self.optimizer, self.flights, self.weights, self.options = (
            model,
            optimizer,
            flights,
            weights,
            options,
        )
        self.strategy, self.driver, self.buckets, self.meter = (
            flights.strategy,
            flights.driver,
            flights.buckets,
            flights.meter,
        )
        self.step = 0
        """Steps of the schedule's clock so far."""
        self._begun = 0  # the step at which this syncer began
        self.steps_since_sync = 0
        """Steps since all buckets last landed at once: under `staggered` in several parts, all
        there have been."""
        self._on_gradients = self.strategy.on.clock == "backward"
        self._device = self.buckets[0].device
        when = self.strategy.when
        self.pace = (
            Pace(when, self.driver, self.meter, len(self.buckets), self._device)
            if isinstance(when, by_speed)
            else None
        )
        self._tick: Tick | None = None
        self._launching = False
        self.order = by_index(self.buckets)
        """Whose slice goes on the wire next, by bucket."""
        self._next = 0  # the next of them in this step
        self._scale = 1.0  # what a gradient is multiplied by on its way into the bucket
        self.landings = Landings(flights, options)
        self.accumulating = False
        self.worked = False
        """Whether there was a backward pass since the last counted step of the optimiser."""
        self._frozen = Frozen(model)
        self.frozen = self._frozen.named
        self._buffers = buffer_places(model) if options.buffers == "broadcast" else []
        self.hooks = Hooks(self)
        self.watch = Watch(self, (param for _, param in self._frozen.named))
        self.checks = Checks(self, options.check_every)
        self._late = (
            Deferred(self, options.overlap == "priority") if options.overlap != "backward" else None
        )

    # -- what users call
    # ----------------------------------------------------------------------------------------------

    def weigh(self, weight: float) -> None:
        """Give this rank's weight (its tokens or samples, say) for the launches to come; every rank
        calls it, once before a launch.

        The mean is sum(w_k · x_k) / sum(w_k). It costs two messages of 8 bytes to each rank, sent
        while the forward pass runs.
        """
        self.weights.tell(weight)

    def skip_step(self) -> None:
        """Take part in a step with nothing new: no gradient on a rank without data, no update on a
        rank that drops one.

        It keeps the ranks' clocks together; the others call `backward()` (or `optimizer.step()`) as
        always.
        """
        if self._on_gradients:
            if self.within:
                raise AttachError(
                    "skip_step() within a backward pass: an earlier one failed half-way. Close "
                    "the syncer and attach again"
                )
            if self.strategy.on.updates and not self.accumulating:
                for bucket in self.buckets:
                    # the last step's update, where nobody has zeroed it: no gradient
                    bucket.clear_grads()
            with self.meter.working():
                self.begin()
                self.finish()
        else:
            with self.meter.working():
                self.stepped(rested=True)

    def rests(self) -> bool:
        """Whether this rank is to call `skip_step()` in place of its next step: under
        `by_speed(…)`, where it is slower than others."""
        return self.pace is not None and not self.pace.works(self.step)

    def land(self) -> None:
        """Wait for the means of a backward pass whose landing was left to the next forward pass
        (`overlap="forward"`, `"priority"`).

        Before `optimizer.step()` they are in `.grad` then, to be clipped or read; after it the
        weights have taken the step.
        """
        if self._late is not None:
            self._late.land()

    def check(self) -> None:
        """Prove that what ranks must hold equal is equal, by hashes of every parameter (and of the
        buffers that are broadcast).

        Raises:
            DisagreementError: on every rank; it names the first parameter that differs.
            NotLandedError: on `parameters()`, when ranks differ rightly: between two landings, or
                always (a drawn few, gossip, parts that land by turns).
        """
        self.land()
        agree.compare(
            self.driver, self.meter, comparable(self), self._device, self.watch.problems()
        )

    @contextmanager
    def common_weights(self) -> Iterator[nn.Module]:
        """The model with the weights that ranks have in common: to validate, to save. Own weights
        come back at the end.

        Common are the parameters themselves on gradients, the anchor on deltas, and the mean over
        ranks (all of it, dense) on parameters.
        """
        if self._on_gradients:
            self.land()
            yield self.model
            return
        own = [bucket.weights() for bucket in self.buckets]
        common = [self.strategy.on.common(bucket, bucket.state) for bucket in self.buckets]
        shown = [
            self.flights.mean(bucket, mine, self._share) if held is None else held
            for bucket, mine, held in zip(self.buckets, own, common, strict=True)
        ]
        self.watch.paused = True
        for bucket, flat in zip(self.buckets, shown, strict=True):
            bucket.set_weights(flat)
        try:
            yield self.model
        finally:
            self.watch.paused = False
            for bucket, mine in zip(self.buckets, own, strict=True):
                bucket.set_weights(mine)

    def all_gather(self, payload: bytes, label: str) -> list[bytes]:
        """Every rank's bytes, by rank; all ranks call it alike. `label` is told if it fails."""
        return agree.all_gather(self.driver, self.meter, payload, label, self._device)

    def report(self) -> Report:
        """Bytes and seconds so far, by bucket and stage."""
        return self.meter.report()

    def trace(self, path: str | Path) -> AbstractContextManager[Trace]:
        """Record what happens when inside the block, on all ranks, and write it to a file for
        Perfetto (ui.perfetto.dev).

        Every rank enters and leaves it alike; rank 0 writes. Compute, encode and wire stand by
        bucket, lane and rank.

        Raises:
            AttachError: there is no such folder, or a trace is being recorded.

        Example:
            >>> import json, tempfile, thinwire
            >>> model = nn.Linear(4, 2)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> with tempfile.TemporaryDirectory() as folder, thinwire.attach(model, optimizer) as sync:
            ...     with sync.trace(f"{folder}/trace.json"):
            ...         model(torch.ones(1, 4)).sum().backward()
            ...         optimizer.step()
            ...     told = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
            >>> [event["name"] for event in told if event["ph"] == "X"]
            ['forward', 'backward', 'wait bucket 0', 'optimizer']
        """
        return recording(self, Path(path))

    def state_dict(self) -> dict[str, Tensor]:
        """Residuals, warm starts, anchors, outer and private state, flights in the air: tensors
        only, rank-qualified where ranks differ.

        With torch DCP: `dcp.save({"sync": sync, …})`, and `sync.load_checkpoint(folder)` at any
            world size.
        """
        self.land()
        return checkpoint.save(self)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a state, after the model and the optimiser have been loaded.

        Raises:
            AttachError: it is of another strategy or model, or lacks what this world needs.
        """
        checkpoint.load(self, state)

    def load_checkpoint(self, folder: str | Path, key: str = "sync") -> None:
        """Go on from a DCP folder in which the syncer was saved as `key`, whatever the world that
        saved it.

        Raises:
            AttachError: there is no such state, or as in `load_state_dict`.
        """
        checkpoint.load(self, checkpoint.read_folder(folder, key))

    def resume(self, step: int, apart: int) -> None:
        """Set the clock, as a checkpoint has it."""
        if self._late is not None:
            self._late.drop()
        self.step = self._begun = step
        self.steps_since_sync = apart
        self.meter.steps = step
        self.accumulating = self.landings.incomplete = False
        self.watch.restart()
        self.checks.restart()

    def close(self) -> None:
        """Land what is in flight, take the hooks off, stop the lanes.

        On deltas a landing is written; on gradients the means of the last tau steps of a delayed
        schedule are dropped, as no step is left to apply them.
        """
        if not self.hooks:
            return
        try:
            self.land()
            self._unhook()
            while launched := [bucket.air[0].step for bucket in self.buckets if bucket.air]:
                oldest = [
                    bucket
                    for bucket in self.buckets
                    if bucket.air and bucket.air[0].step == min(launched)
                ]
                self.landings.put(oldest, write=not self._on_gradients)
        finally:
            self.driver.close()
        never = [
            bucket.names[0] for bucket in self.buckets if bucket.index not in self.landings.written
        ]
        if never and self.step > self._begun:
            some = (
                f" of {len(never)} of {len(self.buckets)} buckets (from {never[0]!r})"
                if len(never) < len(self.buckets)
                else ""
            )
            left = (
                "the optimiser has seen no gradient of theirs"
                if self._on_gradients
                else "each rank keeps its own parameters"
            )
            warnings.warn(
                f"closed after {self.step - self._begun} steps without a mean over ranks{some}: "
                f"{self.strategy.when!r} is longer than "
                f"the run, so {left}. Take a shorter period or delay, or train for longer",
                stacklevel=2,
            )

    def __enter__(self) -> Syncer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._unhook()
            self.driver.abandon(error)

    def _unhook(self) -> None:
        self.hooks.close()
        self.watch.close()
        if self._late is not None:
            self._late.close()

    # -- a step
    # -------------------------------------------------------------------------------------------------------

    @property
    def within(self) -> bool:
        """Whether a backward pass is under way."""
        return self._tick is not None

    def begin(self) -> None:
        """The first gradient of a backward pass."""
        self._refuse_changed()
        self.watch.backward()
        self.landings.guard.begin()
        tick = self.strategy.when.tick(self.step, len(self.buckets))
        self.driver.set_phase(f"step {self.step}")
        if self._late is not None:
            self._late.begin(bool(tick.launch))
        self._next = 0
        if tick.launch:
            self.meter.launched()
            self.weights.commit()
            self._scale = self._share / (self.landings.loss_scale if self.flights.stateful else 1.0)
            for bucket in self.buckets:
                bucket.turn()
        self._tick = tick
        self._launching = bool(tick.launch)

    def take(self, bucket: FlatBucket, i: int) -> None:
        """A gradient: into its bucket with it, and the bucket on its way if it is full."""
        if self._launching:
            bucket.take(i, self._scale)
        else:
            bucket.given[i] = None
        if self._late is not None:
            self._late.filled(bucket, i)
        if self._launching and not bucket.missing:
            self._launch_full()

    def _launch_full(self) -> None:
        """Launch slices of buckets that are full, in the one order that every rank has."""
        assert self._tick is not None
        while self._next < len(self.order) and not self.buckets[self.order[self._next]].missing:
            self.flights.launch_slice(
                self.buckets[self.order[self._next]], self.step, self._share, self._tick.dense
            )
            self._next += 1

    @torch.no_grad()
    def finish(self) -> None:
        """The end of a backward pass."""
        tick = self._tick
        assert tick is not None
        if self.flights.trace is not None:
            self.flights.trace.closed("backward")
        if tick.launch:
            absent = [bucket.take_absent(self._scale) for bucket in self.buckets]
            self._launch_full()
            self.landings.launched(self.buckets, self.step, absent)
        for bucket in self.buckets if tick.launch else ():
            # all at once: memory freed one by one would go back to the system and be faulted in
            # again
            bucket.clear_grads()
        landing = [self.buckets[index] for index in tick.land]
        if self._late is None:
            self.landings.put(landing)
        elif landing:
            self._late.hold(landing)
        self.accumulating = not tick.launch
        self._end(tick)
        self.checks.passed(bool(tick.launch))

    @torch.no_grad()
    def stepped(self, rested: bool = False) -> None:
        """The end of an optimiser step."""
        self.worked = False
        self._refuse_changed()
        self._frozen.refuse_frozen(self.buckets)
        self.watch.before_step()
        if self.pace is not None:
            self.pace.count(self.step, rested)
        tick = self._tick = self.strategy.when.tick(self.step, len(self.buckets))
        self.driver.set_phase(f"step {self.step}")
        if tick.launch:
            self.checks.launching()
            self.weights.commit()
            for index in tick.launch:
                share = (
                    self._share
                    if self.pace is None
                    else self.pace.weight(index, self.weights.shares)
                )
                self.flights.launch(self.buckets[index], self.step, share, tick.dense)
            self.landings.launched([self.buckets[index] for index in tick.launch], self.step, None)
        if self.pace is not None and 0 in tick.launch and not tick.dense:
            self.pace.tell()
        self.landings.put([self.buckets[index] for index in tick.land])
        if self.pace is not None and 0 in tick.land:
            self.pace.take_up()
        self._end(tick)
        if self.pace is not None:
            self.pace.leave()
        if tick.land:
            self.checks.landed()

    def _end(self, tick: Tick) -> None:
        self._tick = None
        self.step += 1
        self.meter.steps += 1
        self.steps_since_sync = (
            0 if len(tick.land) == len(self.buckets) else self.steps_since_sync + 1
        )
        if tick.land and self._buffers:
            agree.broadcast(
                self.driver,
                self.meter,
                [buffer for _, buffer in self.shared_buffers],
                f"step {self.step - 1}, buffers",
            )

    def _refuse_changed(self) -> None:
        self._frozen.refuse_thawed()
        for bucket in self.buckets:
            bucket.refuse_converted()

    # -- odds and ends
    # ------------------------------------------------------------------------------------------------

    @property
    def shared_buffers(self) -> list[tuple[str, Tensor]]:
        """The buffers that are broadcast, as they are now: a module may put another tensor in the
        place of one."""
        return [(name, getattr(module, attribute)) for name, module, attribute in self._buffers]

    @property
    def _share(self) -> float:
        return self.weights.own if self.strategy.on.mean else 1.0
