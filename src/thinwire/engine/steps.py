"""Carry out one step of the schedule, when a source notifies it.

A step is a backward pass (`BackwardSteps`) or an optimiser step (`LocalSteps`):

    begin   the step's tick is known; on gradients, the buffers turn
    launch  a bucket that is full, or whose turn it is, is read and its slices fly
    land    what the tick lands is waited for and written
    end     the clock goes on, and rank 0's buffers are broadcast where means have landed
"""

from __future__ import annotations

import torch

from thinwire.core import Tick
from thinwire.core.phase import phase
from thinwire.engine import agree
from thinwire.engine.buckets import FlatBucket
from thinwire.engine.clock import Clock
from thinwire.engine.flights import Flights
from thinwire.engine.guards import Watch
from thinwire.engine.landings import Landings
from thinwire.engine.observe.checks import Checks
from thinwire.engine.overlap.deferred import Deferred
from thinwire.engine.overlap.priority import by_index
from thinwire.engine.pace import Pace
from thinwire.engine.retune import retune
from thinwire.engine.session import Session
from thinwire.engine.weights import Weights
from thinwire.errors import AttachError
from thinwire.kernels import memory


class Steps:
    """A base of both kinds of step, with the parts that both have.

    Args:
        session: what was attached.
        clock: where its schedule stands.
        flights: puts buckets on the wire.
        landings: writes their means.
        weights: of the ranks in the mean.
        watch: refuses what would let ranks drift apart.
        checks: compares ranks now and then.
    """

    def __init__(
        self,
        session: Session,
        clock: Clock,
        flights: Flights,
        landings: Landings,
        weights: Weights,
        watch: Watch,
        checks: Checks,
    ) -> None:
        self.session, self.clock = session, clock
        self.flights, self.landings, self.weights = flights, landings, weights
        self.watch, self.checks = watch, checks

    @property
    def weight(self) -> float:
        """Return what this rank's contribution is multiplied by."""
        return self.weights.own if self.session.strategy.on.mean else 1.0

    def tick(self) -> Tick:
        """Return what the schedule wants of this step, and name the step for error messages."""
        session, step = self.session, self.clock.step
        session.driver.set_phase(f"step {step}")
        return session.strategy.when.tick(step, len(session.buckets))

    def end(self, tick: Tick) -> None:
        """End the step."""
        session = self.session
        self.clock.advance(synced=len(tick.land) == len(session.buckets))
        session.meter.steps += 1
        # After a landing every rank has rank 0's running statistics, as in DDP.
        if tick.land and session.buffers:
            agree.broadcast(
                session.driver,
                session.meter,
                [buffer for _, buffer in session.shared_buffers()],
                f"step {self.clock.step - 1}, buffers",
            )


class BackwardSteps(Steps):
    """Carries out steps that are backward passes: a `GradientSource` calls `begin`, `take`
    and `finish`.

    Args:
        deferred: lands means in the next forward pass; `None`: they land in `finish`.
    """

    def __init__(
        self,
        session: Session,
        clock: Clock,
        flights: Flights,
        landings: Landings,
        weights: Weights,
        watch: Watch,
        checks: Checks,
        deferred: Deferred | None,
    ) -> None:
        super().__init__(session, clock, flights, landings, weights, watch, checks)
        self._deferred = deferred
        self.order = by_index(session.buckets)
        """Whose slice goes on the wire next, by bucket."""
        self._next = 0  # the next of them in this step
        self._scale = 1.0  # what a gradient is multiplied by on its way into the bucket
        self._tick = Tick()

    def begin(self) -> None:
        """Begin a step, before its first gradient is taken."""
        session, flights = self.session, self.flights
        # 1. May this be a step, of this model, on this wire?
        session.refuse_changed()
        if retune(session, flights, self.clock.step):
            self.order = by_index(session.buckets)
        self.watch.backward()
        self.landings.guard.begin()
        # 2. The tick; means of the last pass that no module has needed land now.
        tick = self._tick = self.tick()
        if self._deferred is not None:
            self.order = self._deferred.begin(bool(tick.launch)) or self.order
        self._next = 0
        if tick.launch:
            session.meter.launched()
            self.weights.commit()
            # 3. On a launch go on to the next buffer. State between steps must not depend on the
            #    loss scale, which changes; without state values stay scaled, as the scaler expects
            #    them.
            self._scale = self.weight / (session.loss_scale if flights.stateful else 1.0)
            for bucket in session.buckets:
                bucket.turn()
        self.clock.within = True

    def take(self, bucket: FlatBucket, i: int) -> None:
        """Take the gradient of the bucket's parameter `i`, and launch what is full.

        `.grad` of the parameter holds it. Parameters may come in any order, each once a step.
        """
        if self._tick.launch:
            bucket.take(i, self._scale)
        else:
            # No launch: `.grad` goes on collecting, and is no mean any more.
            bucket.given[i] = None
        if self._deferred is not None:
            self._deferred.filled(bucket, i)
        if self._tick.launch and not bucket.missing:
            self._launch_full()

    def take_all(self, bucket: FlatBucket) -> None:
        """Take the gradients of a whole bucket, and launch what is full."""
        if not self._tick.launch:
            bucket.given = [None] * len(bucket.params)
            return
        bucket.take_all(self._scale)
        self._launch_full()

    @property
    def launches(self) -> bool:
        """Return whether the step under way launches its buckets."""
        return bool(self._tick.launch)

    @torch.no_grad()
    def finish(self) -> None:
        """End a step: launch what is left, and land what the schedule lands.

        Parameters that were not taken count as without a gradient.
        """
        session, tick = self.session, self._tick
        # 1. launch the rest, and the status that travels with it
        if self.flights.trace is not None:
            self.flights.trace.closed("backward")
        if tick.launch:
            absent = [bucket.take_absent(self._scale) for bucket in session.buckets]
            self._launch_full()
            self.landings.launched(session.buckets, self.clock.step, absent)
        for bucket in session.buckets if tick.launch else ():
            # all at once: memory freed one by one would go back to the system and be faulted in
            # again
            bucket.clear_grads()
        # 2. land, or leave that to the next forward pass
        landing = [session.buckets[index] for index in tick.land]
        if self._deferred is None:
            self.landings.put(landing)
        elif landing:
            self._deferred.hold(landing)
        # 3. go on
        self.clock.accumulating = not tick.launch
        self.end(tick)
        self.checks.passed(bool(tick.launch))

    def skip(self) -> None:
        """Take part in a step with no gradient."""
        if self.clock.within:
            raise AttachError(
                "skip_step() within a backward pass: an earlier one failed half-way. Close "
                "the syncer and attach again"
            )
        if self.session.strategy.on.updates and not self.clock.accumulating:
            for bucket in self.session.buckets:
                # the last step's update, where the loop has not zeroed it, is no gradient
                bucket.clear_grads()
        with self.session.meter.working():
            with phase("begin"):
                self.begin()
            with phase("finish"):
                self.finish()

    def _launch_full(self) -> None:
        """Launch slices of buckets that are full, in the one order that every rank has."""
        buckets, order = self.session.buckets, self.order
        while self._next < len(order) and not buckets[order[self._next]].missing:
            self.flights.launch_slice(
                buckets[order[self._next]], self.clock.step, self.weight, self._tick.dense
            )
            self._next += 1


class LocalSteps(Steps):
    """Carries out steps that are optimiser steps: each rank takes its own, means land at times.

    Args:
        pace: how fast ranks go, where slower ones rest at some steps.
    """

    def __init__(
        self,
        session: Session,
        clock: Clock,
        flights: Flights,
        landings: Landings,
        weights: Weights,
        watch: Watch,
        checks: Checks,
        pace: Pace | None,
    ) -> None:
        super().__init__(session, clock, flights, landings, weights, watch, checks)
        self._pace = pace

    @torch.no_grad()
    def stepped(self, rested: bool = False) -> None:
        """End an optimiser step.

        Args:
            rested: this rank took part without a step of its own.
        """
        session, clock, pace = self.session, self.clock, self._pace
        # 1. whose step it is, and whether it may be one
        with phase("begin"):
            clock.worked = False
            session.refuse_changed()
            session.refuse_newly_frozen()
            self.watch.before_step()
            if pace is not None:
                pace.count(clock.step, rested)
            tick = self.tick()
        # 2. launch, by lanes and routes that suit the wire
        retune(session, self.flights, clock.step)
        if tick.launch:
            self.checks.launching()
            self.weights.commit()
            launched = [session.buckets[index] for index in tick.launch]
            for bucket in launched:
                weight = (
                    self.weight
                    if pace is None
                    else pace.weight(bucket.index, self.weights.fractions)
                )
                self.flights.launch(bucket, clock.step, weight, tick.dense)
            self.landings.launched(launched, clock.step, None)
        if pace is not None and 0 in tick.launch and not tick.dense:
            # Once a period, with the first bucket's launch: all ranks send at the same step.
            pace.send()
        # 3. land
        self.landings.put([session.buckets[index] for index in tick.land])
        if pace is not None and 0 in tick.land:
            # With its landing, so that all ranks change pace at the same step.
            pace.take_up()
        # 4. go on
        self.end(tick)
        if pace is not None:
            pace.leave()
        if tick.land:
            self.checks.landed()
            # What a launch and a landing took is not needed before the next ones.
            if session.strategy.when.gap > 1:
                memory.release()

    def skip(self) -> None:
        """Take part in a step without one of this rank's own."""
        with self.session.meter.working():
            self.stepped(rested=True)
