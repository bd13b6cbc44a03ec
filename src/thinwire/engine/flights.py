"""Put buckets on the wire, wait for them, and take back what a failed step did to the state."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from thinwire.core import Flight, Leaf, Outcome, Spec
from thinwire.core.phase import phase
from thinwire.core.travel import needing_base
from thinwire.engine.airborne import Airborne, Slice, Track
from thinwire.engine.bound import Bound
from thinwire.engine.buckets import FlatBucket
from thinwire.engine.observe.trace import COMPUTE, Trace
from thinwire.engine.session import Session
from thinwire.engine.wire_watch import WireWatch
from thinwire.kernels import fast
from thinwire.what import identity

_EXACT = identity()  # what a dense tick sends


class Flights:
    """A launcher of the flights of one syncer's buckets, which waits for them, too.

    Args:
        bound: the routes in this world. What the strategy does not compress, dense ticks and means
            outside the schedule, takes `bound.dense`.
    """

    def __init__(self, session: Session, bound: Bound) -> None:
        self._session = session
        self._needs_base = bool(needing_base(session.strategy.what, session.strategy.how))
        self.rebind(bound)
        self.wire = WireWatch() if bound.link is not None and session.driver.world > 1 else None
        """Whether the wire keeps its speed, where lanes or routes were chosen by it."""
        self.look = True
        """Look at what is launched for values that are not finite."""
        self.trace: Trace | None = None

    def rebind(self, bound: Bound) -> None:
        """Go on by other routes, lanes and slices, which the buckets have already."""
        self.bound = bound
        self.stateful = any(
            True
            for bucket in self._session.buckets
            for part in bucket.slices
            for _ in part.state.walk()
        )
        """Some codec or route keeps state between flights."""

    def launch(self, bucket: FlatBucket, step: int, weight: float, dense: bool) -> None:
        """Read a bucket and put a flight for each of its slices on their lanes."""
        for _ in bucket.slices:
            self.launch_slice(bucket, step, weight, dense)

    def launch_slice(self, bucket: FlatBucket, step: int, weight: float, dense: bool) -> None:
        """Put the next slice of a bucket on its lane; with its first one the bucket is read."""
        # 1. the first slice of a launch reads the bucket
        if not bucket.air or bucket.air[-1].step != step:
            with phase("read", bucket.index):
                x = self._session.strategy.on.read(bucket, bucket.state, weight)
                first_bad = bucket.first_nonfinite(x) if self.look else -1
            bucket.air.append(Airborne(step, x, [], [], first_bad=first_bad))
        # 2. the next slice flies
        air = bucket.air[-1]
        part = bucket.slices[len(air.handles)]
        if self._needs_base:
            put_base(bucket, part, self._session.strategy.on.base(bucket, bucket.state))
        span, track = air.x[part.spec.begin : part.spec.end], Track()
        flight = (
            _landing_in(span, self._exact(span, part.spec, step))
            if dense
            else self._thin(span, part, step, track)
        )
        air.tracks.append(track)
        label = f"step {step}, bucket {bucket.index} (from {bucket.names[0]!r})"
        with phase("launch", bucket.index):
            air.handles.append(self._session.driver.start(flight, part.lane, label))

    def wait(
        self, landing: Sequence[tuple[FlatBucket, Airborne]], check: bool, failed: bool = False
    ) -> bool:
        """Wait for launches of one step and put their sums in place.

        Where a sum is not finite, take back what the flights did to the state.

        Args:
            check: look whether the sums are finite, even where no state hangs on it.
            failed: some rank's values were not finite, so take it back whatever the sums are.

        Returns:
            Whether the sums are finite; true where they were not looked at.
        """
        # 1. wait: each flight puts its sum where its contribution was
        fresh = [(bucket, air) for bucket, air in landing if not air.waited]
        for bucket, air in fresh:
            row = self._session.meter.rows[bucket.index]
            for i, (part, handle) in enumerate(zip(bucket.slices, air.handles, strict=True)):
                begun = time.perf_counter()
                with phase("wait", bucket.index):
                    outcome = handle.wait()
                part.mask = outcome.mask
                waited = time.perf_counter()
                # The caller's time in `wait` is what the schedule has not hidden.
                row.exposed_s += waited - begun
                row.add(handle)
                if self.trace is not None:
                    self.trace.add(
                        COMPUTE,
                        f"wait bucket {bucket.index}",
                        begun,
                        waited,
                        step=air.step,
                        slice=i,
                    )
                    self.trace.flown(handle, bucket.index, i, part.lane, air.step)
            air.waited = True
        if self.wire is not None:
            handles = [handle for _, air in fresh for handle in air.handles]
            self.wire.note(
                sum(handle.sent_bytes for handle in handles),
                sum(handle.wire_s for handle in handles),
            )
        # 2. look whether all of it is finite
        finite_by_bucket = (
            [fast.all_finite(air.x) for _, air in landing] if check or self.stateful else []
        )
        finite = not finite_by_bucket or bool(torch.stack(finite_by_bucket).all())
        # 3. undo what a failed step did to residuals and the like, on all shards of a replica
        if check or self.stateful or self.look:
            label = f"step {landing[0][1].step}: sums not finite"
            finite = not self._session.replica.any(failed or not finite, self._session.meter, label)
        if failed or not finite:
            for bucket, air in fresh:
                _take_back(bucket, air)
        return finite

    def take_back_silent(self, bucket: FlatBucket, air: Airborne) -> None:
        """Take residuals back to before the launch, of parameters whose gradient no rank had."""
        if self.stateful and bucket.silent and air.tracks:
            _take_back(bucket, air, frozenset(bucket.names[i] for i in bucket.silent))

    def wait_all(self) -> None:
        """Wait for everything in the air, step by step, without landing it."""
        for step in sorted({air.step for bucket in self._session.buckets for air in bucket.air}):
            landing = [
                (bucket, air)
                for bucket in self._session.buckets
                for air in bucket.air
                if air.step == step
            ]
            # One status for all launches of a step: all of them have failed, or none.
            status = landing[0][1].status
            failed = status is not None and bool(status.wait().bad)
            self.wait(landing, check=False, failed=failed)
            for bucket, air in landing:
                if (
                    failed
                ):  # saved and restored without its status, it must still land as not finite
                    air.x.fill_(torch.nan)
                if status is not None:
                    air.silent = status.silent.get(bucket.index, frozenset())

    def mean(self, bucket: FlatBucket, mine: Tensor, weight: float) -> Tensor:
        """Return the weighted mean over ranks of a bucket's values, dense and outside the
        schedule."""
        flight = self._exact(mine * weight, bucket.spec, 0)
        label = f"common weights of bucket {bucket.index}"
        handle = self._session.driver.start(flight, 0, label)
        total = handle.wait().total
        self._session.meter.count(label, handle.sent_bytes)
        return total

    def _exact(self, span: Tensor, spec: Spec, step: int) -> Flight[Outcome]:
        ctx = self._session.context(step)
        dense = self.bound.dense
        return dense.carry(_EXACT, span, spec, dense.init(_EXACT, spec, ctx), ctx)

    def _thin(self, span: Tensor, part: Slice, step: int, track: Track) -> Flight[Outcome]:
        flight = self.bound.how.carry(
            self._session.strategy.what, span, part.spec, part.state, self._session.context(step)
        )
        return _landing_in(span, _tracked(flight, part, track) if self.stateful else flight)


def put_base(bucket: FlatBucket, part: Slice, base: Tensor) -> None:
    """Put the target's base values into each state leaf of a slice that is called "base".

    A leaf covers a span, or the parameters of one role laid side by side, so its elements are found
    by parameter name.
    """
    begins = {each.name: each.begin for each in bucket.spec.parts}
    for path, leaf in part.state.walk():
        if path.rpartition("/")[2] != "base" or leaf.spec is None:
            continue
        runs = [
            base[begins[each.part.name] + each.low : begins[each.part.name] + each.high]
            for each in leaf.spec.extents()
        ]
        if runs:
            leaf.flat = torch.cat(runs)


def _landing_in(span: Tensor, flight: Flight[Outcome]) -> Flight[Outcome]:
    """Carry a flight and put its sum where its contribution was, on its lane: no other memory of
    the span's size lives on until the bucket lands."""
    outcome = yield from flight
    # A route may sum in place, in the contribution's own memory; else copy.
    if span.data_ptr() != outcome.total.data_ptr():
        span.copy_(outcome.total)
    return Outcome(span, mask=outcome.mask)


def _tracked(flight: Flight[Outcome], part: Slice, track: Track) -> Flight[Outcome]:
    """Carry a flight and note which leaves it replaced (it runs on its lane, in order)."""
    # The lane runs its flights in order, so nothing else replaces these leaves meanwhile.
    before = [(leaf, leaf.value) for _, leaf in part.state.walk()]
    outcome = yield from flight
    track.changed = [
        (leaf, old, leaf.value, leaf.fade) for leaf, old in before if leaf.value is not old
    ]
    return outcome


def _take_back(bucket: FlatBucket, air: Airborne, names: frozenset[str] | None = None) -> None:
    """Undo what the flights of a failed step did to the state.

    Where later flights have built on it, take out what they left of it.

    Args:
        names: the parameters whose state is taken back; `None` for all.
    """
    # Later launches write the same leaves on their lanes: wait until they are done.
    for later in bucket.air:
        for handle in later.handles:
            handle.wait()
    # Slice by slice, as each has leaves of its own.
    for i, track in enumerate(air.tracks):
        later_tracks = [later.tracks[i] for later in bucket.air if later.step > air.step]
        for leaf, before, after, _ in track.changed:
            _without(leaf, before, after, later_tracks, names)


def restore_entries(leaf: Leaf, before: Tensor, after: Tensor, names: frozenset[str]) -> Tensor:
    """Return the value of a flat leaf that is `before` at the entries of some parameters, and
    `after` elsewhere."""
    assert leaf.spec is not None
    old, new = leaf.unpack(before), leaf.unpack(after).clone()
    for extent in leaf.spec.extents():
        if extent.part.name in names:
            span = slice(extent.at, extent.at + extent.high - extent.low)
            new[span] = old[span]
    return leaf.pack(new)


def _without(
    leaf: Leaf, before: Tensor, after: Tensor, later: Sequence[Track], names: frozenset[str] | None
) -> None:
    """Take a change out of a leaf, and out of the record of later changes.

    So a later change may be taken out as well. What is flat over a span is added to, so the rest of
    the change is known. Other state (a warm start, a threshold) is taken back only where nothing
    has been built on it.
    """
    # 1. Only sums over a span can be taken out of what was built on them.
    is_sum = leaf.spec is not None and leaf.kind != "private"
    if names is not None:
        if not is_sum:
            return
        before = restore_entries(leaf, before, after, names)
    # 2. `off`, added to a value, takes the change out of it. Each later flight kept `fade` of the
    #    value before it (a residual's decay), so there is less of the change to take out.
    off = leaf.unpack(before) - leaf.unpack(after) if is_sum else None
    for track in later:
        for j, (own, _, then, fade) in enumerate(track.changed):
            if own is leaf:
                off = None if off is None else off * fade
                # Without a sum the later value stays, as something was built on it.
                now = then if off is None else leaf.pack(leaf.unpack(then) + off)
                track.changed[j] = (leaf, before, now, fade)
                before = now
    leaf.value = before
