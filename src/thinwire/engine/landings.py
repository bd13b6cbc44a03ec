"""Land a launch: wait for its status, judge its sums, and write its means."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor

from thinwire.core.phase import phase
from thinwire.engine.airborne import Airborne, LaunchStatus
from thinwire.engine.buckets import FlatBucket
from thinwire.engine.flights import Flights, restore_entries
from thinwire.engine.nonfinite import Guard
from thinwire.engine.session import Session
from thinwire.engine.status import Status


class Landings:
    """Lands the launches of one syncer: waits for each, judges it and writes its means."""

    def __init__(self, session: Session, flights: Flights) -> None:
        self._session, self._flights, self._strategy = session, flights, session.strategy
        self.guard = Guard(
            session.options.nonfinite, session.on_gradients, session.meter, session.replica
        )
        """What becomes of values that are not finite."""
        flights.look = self.guard.active
        self._first = True
        self.applied = True
        """Some optimiser has stepped since the last landing."""
        self._warned = False
        self.incomplete = False
        """At the last landing every rank missed some gradient."""
        self.written: set[int] = set()
        """Buckets of which a mean has landed since the syncer began."""

    def follow(self, earlier: Landings, all_landed: bool) -> None:
        """Go on after a switch of strategy, with what ranks know of absent gradients.

        Args:
            all_landed: every parameter has had a mean under the strategy before.
        """
        self.incomplete, self._first = earlier.incomplete, earlier._first
        if earlier._session.on_gradients == self._session.on_gradients:
            self.applied, self.guard = earlier.applied, earlier.guard
        if all_landed:
            self.written = {bucket.index for bucket in self._session.buckets}

    def launched(
        self, buckets: Sequence[FlatBucket], step: int, absent: Sequence[frozenset[int]] | None
    ) -> None:
        """Start the status of a launch on its way: it travels while the buckets do.

        Args:
            absent: by bucket, the parameters without a gradient here; `None` on local steps, for
                which only values that are not finite are reported.
        """
        # On local steps a status travels only where all ranks meet and values are looked at.
        if absent is None and not (self.guard.active and self._strategy.how.consensus):
            return
        # One status for all buckets of the launch, which each of them refers to.
        airs = [bucket.air[-1] for bucket in buckets]
        first_bad = [air.first_bad for air in airs]
        session, wire = self._session, self._flights.wire
        status = Status(
            session.driver,
            session.meter,
            buckets,
            step,
            first_bad,
            absent,
            bitmap=self.incomplete,
            as_planned=None if wire is None else wire.as_planned,
        )
        for air in airs:
            air.status = status

    def put(self, buckets: Sequence[FlatBucket], write: bool = True) -> None:
        """Wait for the oldest launch of each bucket and write its mean where it belongs.

        Raises:
            NonFiniteError: on local steps, where some rank's parameters are not finite; nothing is
                written then.
        """
        landing = [(bucket, bucket.air.popleft()) for bucket in buckets if bucket.air]
        if not landing:
            return
        with phase("land"):
            self._land(landing, write)

    def _land(self, landing: list[tuple[FlatBucket, Airborne]], write: bool) -> None:
        # 1. wait for the status that all ranks agree on, and for the sums
        if write:
            self.written.update(bucket.index for bucket, _ in landing)
        status = self._status_of(landing)
        failed = (
            bool(status.bad)
            if status is not None
            else any(int(air.first_bad) >= 0 for _, air in landing)
        )
        finite = self._flights.wait(landing, self._looks_at_sums or status is None, failed)
        if not write:
            return
        # 2. values that are not finite
        if self.guard.active and (failed or not finite):
            self.guard.failed(landing, status)
        # 3. write
        loss_scale = self._session.loss_scale
        # One by one, so that the memory of a launch is free for what the next one writes.
        while landing:
            bucket, air = landing.pop(0)
            bucket.silent = (
                air.silent if status is None else status.silent.get(bucket.index, frozenset())
            )
            # What a flight sent of a silent parameter is not written, so its residual goes back,
            # too.
            self._flights.take_back_silent(bucket, air)
            # With stateful codecs values fly unscaled; the loop's scaler divides by the scale
            # again.
            if self._session.on_gradients and self._flights.stateful and loss_scale != 1.0:
                air.x.mul_(loss_scale)
            with phase("write", bucket.index):
                self._write(bucket, air.x)
        self.applied = False

    def warn_dropped(self, name: str) -> None:
        """Warn, once, where the loop has dropped a mean under a delay: it was of another pass than
        the loop expects."""
        if self._strategy.when.delay and not self.applied and not self._warned:
            self._warned = True
            warnings.warn(
                f"the mean that had landed for {name!r} was zeroed without an optimizer.step(). "
                f"With {self._strategy.when!r} it was of an "
                "earlier backward pass, so that one's gradient is lost, and this one's lands "
                "later. Freeze what a pass is not to train "
                "(requires_grad_(False)), or take a schedule without a delay",
                stacklevel=3,
            )

    def warn_never(self, steps: int) -> None:
        """Warn, as the syncer closes, of buckets of which no mean has landed in its steps."""
        buckets = self._session.buckets
        never = [bucket.names[0] for bucket in buckets if bucket.index not in self.written]
        if not never or not steps:
            return
        # Of which buckets, and what that means for the run.
        some = (
            f" of {len(never)} of {len(buckets)} buckets (from {never[0]!r})"
            if len(never) < len(buckets)
            else ""
        )
        left = (
            "the optimiser has seen no gradient of theirs"
            if self._session.on_gradients
            else "each rank keeps its own parameters"
        )
        warnings.warn(
            f"closed after {steps} steps without a mean over ranks{some}: "
            f"{self._strategy.when!r} is longer than the run, so {left}. "
            "Take a shorter period or delay, or train for longer",
            stacklevel=3,
        )

    def _status_of(self, landing: Sequence[tuple[FlatBucket, Airborne]]) -> LaunchStatus | None:
        """Wait for the status of a launch; `None` where a checkpoint brought it, or ranks do not
        all meet."""
        status = landing[0][1].status
        if status is not None:
            with phase("agree", "status of the launch"):
                status.wait()
            self.incomplete = status.incomplete
            if self._flights.wire is not None:
                self._flights.wire.agreed(status.as_planned)
            if self._first:
                status.warn_of_absent()
            self._first = False
        return status

    @property
    def _looks_at_sums(self) -> bool:
        """Return whether sums may be not finite though every rank's values are: a codec's range, a
        plain sum, or parameters."""
        return self.guard.active and (
            not self._session.on_gradients
            or self._strategy.what.traits.lossy
            or not self._strategy.on.mean
        )

    def _write(self, bucket: FlatBucket, total: Tensor) -> None:
        """Write a mean; the target's state of parameters whose gradient no rank had stays as it
        was."""
        # Targets write whole buckets: put back what they did to silent parameters' state.
        before = (
            [(leaf, leaf.value) for _, leaf in bucket.state.walk() if leaf.spec is not None]
            if bucket.silent
            else []
        )
        self._strategy.on.write(bucket, total, bucket.state)
        names = frozenset(bucket.names[i] for i in bucket.silent)
        for leaf, value in before:
            leaf.value = restore_entries(leaf, value, leaf.value, names)
