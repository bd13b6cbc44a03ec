"""The syncer: what `thinwire.attach` returns.

It holds the parts that synchronise one model and hands users' calls on to them; `steps.py` carries
out a step, and `sources/` notify it of one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType

from torch import Tensor, nn
from torch.optim import Optimizer

from thinwire.core import Driver
from thinwire.core.phase import phase
from thinwire.engine import agree, checkpoint
from thinwire.engine.buckets import FlatBucket
from thinwire.engine.clock import Clock
from thinwire.engine.common import in_common
from thinwire.engine.flights import Flights
from thinwire.engine.guards import Watch
from thinwire.engine.landings import Landings
from thinwire.engine.observe.checks import Checks, comparable
from thinwire.engine.observe.meter import Meter, Report
from thinwire.engine.observe.recording import recording
from thinwire.engine.observe.trace import Trace
from thinwire.engine.options import Options
from thinwire.engine.overlap.deferred import Deferred
from thinwire.engine.pace import Pace
from thinwire.engine.saved import read_folder
from thinwire.engine.session import Session
from thinwire.engine.sources import BY_NAME, OptimizerSteps, Source
from thinwire.engine.steps import BackwardSteps, LocalSteps
from thinwire.engine.switch import Switched, follow, prepare, relaid
from thinwire.engine.weights import Weights
from thinwire.errors import AttachError
from thinwire.strategy import Strategy


class Syncer:
    """A strategy at work on one model and optimiser: what `thinwire.attach` returns. Close it, or
    use it as a context."""

    def __init__(self, session: Session, flights: Flights, weights: Weights) -> None:
        self.clock = Clock()
        self._assemble(session, flights, weights)
        session.options.layout.gather(session.on_gradients)

    def _assemble(self, session: Session, flights: Flights, weights: Weights) -> None:
        """Make the parts that a strategy needs, around the clock."""
        options, when = session.options, session.strategy.when
        self.session, self.flights, self.weights = session, flights, weights
        self.landings = Landings(session, flights)
        self.pace = (
            Pace(when, session.driver, session.meter, len(session.buckets), session.device)
            if when.skips_steps
            else None
        )
        self.watch = Watch(session, self.clock, self.landings)
        self.checks = Checks(session, self.clock, self.watch, options.check_every)
        self._deferred = (
            Deferred(session, self.landings, options.overlap == "priority")
            if options.overlap != "backward"
            else None
        )
        self.steps = self._make_steps()
        self.source = self._make_source()  # last, as it hooks on to the model

    def _make_steps(self) -> BackwardSteps | LocalSteps:
        parts = (
            self.session,
            self.clock,
            self.flights,
            self.landings,
            self.weights,
            self.watch,
            self.checks,
        )
        if self.session.on_gradients:
            return BackwardSteps(*parts, self._deferred)
        return LocalSteps(*parts, self.pace)

    def _make_source(self) -> Source:
        session, steps = self.session, self.steps
        if isinstance(steps, LocalSteps):
            return OptimizerSteps(session, steps)
        return BY_NAME[session.options.source](session, steps)

    # -- facts

    @property
    def model(self) -> nn.Module:
        return self.session.model

    @property
    def optimizer(self) -> Optimizer:
        return self.session.optimizer

    @property
    def strategy(self) -> Strategy:
        return self.session.strategy

    @property
    def driver(self) -> Driver:
        return self.session.driver

    @property
    def buckets(self) -> Sequence[FlatBucket]:
        return self.session.buckets

    @property
    def meter(self) -> Meter:
        return self.session.meter

    @property
    def options(self) -> Options:
        return self.session.options

    @property
    def step(self) -> int:
        """Return the steps of the schedule's clock so far."""
        return self.clock.step

    @property
    def steps_since_sync(self) -> int:
        """Return the steps since all buckets last landed at once."""
        return self.clock.steps_since_sync

    @property
    def accumulating(self) -> bool:
        """Return whether `.grad` holds this rank's own sum."""
        return self.clock.accumulating

    # -- what users call

    def weigh(self, weight: float) -> None:
        """Give this rank's weight (such as its tokens or samples) for the launches to come; every
        rank calls it, once before a launch.

        The mean is sum(w_k · x_k) / sum(w_k). It costs two messages of 8 bytes to each rank, sent
        while the forward pass runs.
        """
        self.weights.send(weight)

    def reduce(self) -> None:
        """Take part in a step with the gradients that are in `.grad`, where the syncer was attached
        with `source="manual"`.

        Every rank calls it alike, after its backward passes and before `optimizer.step()`. When it
        returns, the mean is in `.grad`, as the schedule has it.

        Raises:
            AttachError: the syncer was attached with another source, or is closed.
            NotLandedError: `.grad` still holds the last mean.

        Example:
            >>> import torch, thinwire
            >>> model = nn.Linear(4, 2)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> with thinwire.attach(model, optimizer, source="manual") as sync:
            ...     for _ in range(2):
            ...         model(torch.ones(1, 4)).sum().backward()
            ...     sync.reduce()
            ...     optimizer.step()
            ...     sync.step
            1
        """
        self.source.reduce()

    def skip_step(self) -> None:
        """Take part in a step with nothing new: no gradient on a rank without data, no update on a
        rank that drops one.

        It keeps the ranks' clocks together; the others call `backward()` (or `optimizer.step()`) as
        always.
        """
        self.source.skip()

    def rests(self) -> bool:
        """Return whether this rank is to call `skip_step()` in place of its next step: under
        `by_speed(…)`, where it is slower than others."""
        return self.pace is not None and not self.pace.works(self.clock.step)

    def land(self) -> None:
        """Wait for the means of a backward pass whose landing was left to the next forward pass
        (`overlap="forward"`, `"priority"`).

        Before `optimizer.step()` they are in `.grad` then, to be clipped or read; after it the
        weights have taken the step.
        """
        if self._deferred is not None:
            self._deferred.land()

    def check(self) -> None:
        """Prove that what ranks must hold equal is equal, by hashes of every parameter (and of the
        buffers that are broadcast).

        Raises:
            DisagreementError: on every rank; it names the first parameter that differs.
            NotLandedError: on `parameters()`, when ranks differ rightly: between two landings, or
                always (a drawn few, gossip, parts that land by turns).
        """
        self.land()
        session = self.session
        named, problems = comparable(session, self.clock), self.watch.problems()
        with session.replica.agreeing(session.meter, "check"):
            agree.compare(session.driver, session.meter, named, session.device, problems)

    @contextmanager
    def common_weights(self) -> Iterator[nn.Module]:
        """Give the model the weights that ranks have in common: to validate, to save. Own weights
        come back at the end.

        Common are the parameters themselves on gradients, the anchor on deltas, and the mean over
        ranks (all of it, dense) on parameters.
        """
        self.land()
        if self.session.on_gradients:
            yield self.model
            return
        with in_common(self.session, self.flights, self.weights, self.watch):
            yield self.model

    def all_gather(self, payload: bytes, label: str) -> list[bytes]:
        """Return every rank's bytes, by rank; all ranks call it alike. `label` names the exchange
        where it fails."""
        return self.session.all_gather(payload, label)

    def report(self) -> Report:
        """Return bytes and seconds so far, by bucket and stage."""
        return self.meter.report()

    def trace(self, path: str | Path) -> AbstractContextManager[Trace]:
        """Record what happens when inside the block, on all ranks, and write it to a file for
        Perfetto (ui.perfetto.dev).

        Every rank enters and leaves it alike; rank 0 writes. Compute, encode and wire stand by
        bucket, lane and rank.

        Raises:
            AttachError: there is no such folder, or a trace is being recorded.

        Example:
            >>> import json, tempfile, torch, thinwire
            >>> model = nn.Linear(4, 2)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> sync = thinwire.attach(model, optimizer)
            >>> with sync, tempfile.TemporaryDirectory() as folder:
            ...     with sync.trace(f"{folder}/trace.json"):
            ...         model(torch.ones(1, 4)).sum().backward()
            ...         optimizer.step()
            ...     events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
            >>> [event["name"] for event in events if event["ph"] == "X"]
            ['forward', 'backward', 'wait bucket 0', 'optimizer']
        """
        return recording(self.session, self.flights, Path(path))

    def switch(self, strategy: Strategy) -> tuple[str, ...]:
        """Change the strategy in mid-run, after the `optimizer.step()` of a landing; every rank
        calls it alike. Steps are counted on. State is taken over by parameter and element.

        Returns:
            What could not be taken over, which is a warning, too; empty where nothing is lost.

        Raises:
            NotLandedError: between two landings; it counts the steps that are left.
            AttachError: the strategy does not go with the model, the optimiser or the options.
            DisagreementError: ranks differ in strategy or step, or in weights that must be equal.

        Example:
            >>> import torch, thinwire
            >>> from thinwire import recipes
            >>> model = nn.Linear(4, 2)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> with thinwire.attach(model, optimizer) as sync:
            ...     model(torch.ones(1, 4)).sum().backward()
            ...     optimizer.step()
            ...     lost = sync.switch(recipes.topk_sgd())
            ...     lost, sync.strategy == recipes.topk_sgd(), sync.step
            ((), True, 1)
        """
        if not self.source.active:
            raise AttachError("sync.switch() of a syncer that is closed: attach again")
        with phase("switch"):
            self.land()
            switched = prepare(self, strategy)
            self._go_on_with(switched)
            self.options.layout.gather(self.session.on_gradients)
        if switched.lost:
            warnings.warn("switch: " + "; ".join(switched.lost), stacklevel=2)
        return switched.lost

    def relayout(self) -> None:
        """Follow the framework that gathers gradients where it has laid its buckets out anew: state
        is taken over by parameter and element. Every rank calls it at the same step."""
        with phase("relayout"):
            new = relaid(self)
            self._go_on_with(new)
        if new.lost:
            warnings.warn("new buckets: " + "; ".join(new.lost), stacklevel=2)

    def _go_on_with(self, new: Switched) -> None:
        before = self.watch, self.landings, self.checks, self.pace
        self._unhook()
        self._assemble(new.session, new.flights, new.weights)
        follow(self, *before)

    def state_dict(self) -> dict[str, Tensor]:
        """Return residuals, warm starts, anchors, outer and private state, flights in the air:
        tensors only, rank-qualified where ranks differ.

        With torch DCP: `dcp.save({"sync": sync, …})`, and `sync.load_checkpoint(folder)` at any
            world size.
        """
        with phase("save"):
            self.land()
            return checkpoint.save(self)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a state, after the model and the optimiser have been loaded.

        Raises:
            CheckpointError: it is of another strategy or model, or lacks what this world needs.
        """
        with phase("load"):
            checkpoint.load(self, state)

    def load_checkpoint(self, folder: str | Path, key: str = "sync") -> None:
        """Go on from a DCP folder in which the syncer was saved as `key`, whatever the world that
        saved it.

        Raises:
            CheckpointError: there is no such state, or as in `load_state_dict`.
        """
        with phase("load"):
            checkpoint.load(self, read_folder(folder, key))

    def resume(self, step: int, steps_since_sync: int) -> None:
        """Set the clock, as a checkpoint has it."""
        if self._deferred is not None:
            self._deferred.drop()
        self.clock.restart(step, steps_since_sync)
        self.landings.incomplete = False
        self.watch.restart()
        self.checks.restart()

    def close(self) -> None:
        """Land what is in flight, take the hooks off, stop the lanes.

        On deltas a landing is written; on gradients the means of the last tau steps of a delayed
        schedule are dropped, as no step is left to apply them.
        """
        if not self.source.active:
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
                self.landings.put(oldest, write=not self.session.on_gradients)
        finally:
            self.driver.close()
            self.options.layout.close()
        self.landings.warn_never(self.clock.step - self.clock.began_at)

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
        self.source.close()
        self.watch.close()
        if self._deferred is not None:
            self._deferred.close()
