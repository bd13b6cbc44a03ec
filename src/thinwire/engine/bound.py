"""Bind a strategy's route to the world and the link, as `attach` and `switch` do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from thinwire.core import Driver, Link, Route
from thinwire.engine import agree, probe
from thinwire.engine.buckets import FlatBucket, build
from thinwire.engine.lane_plan import COUNTS, SIZES, LanePlan, chosen, link_text, measured_codec
from thinwire.engine.observe.meter import Meter, Row
from thinwire.engine.options import Options
from thinwire.engine.tryout import FEW_LANES, LOSSY, Tryout, tried, worth_it
from thinwire.how import auto, checked, direct, native
from thinwire.strategy import Strategy
from thinwire.what import identity


@dataclass(frozen=True)
class Bound:
    """A strategy's routes, lanes and slices in one world. Make one with `bind`.

    how: the strategy's route, bound to the world.
    dense: the route of what is not compressed.
    lane_plan: lanes and slices.
    link: as it was measured; `None` where nothing is chosen by it.
    """

    how: Route
    dense: Route
    lane_plan: LanePlan
    link: Link | None

    def prepare(self, driver: Driver) -> None:
        """Make the connections that both routes need."""
        groups = (*self.how.groups(driver.world), *self.dense.groups(driver.world))
        peers = max(route.partners(driver.rank, driver.world) for route in (self.how, self.dense))
        driver.prepare(tuple(dict.fromkeys(groups)), self.lane_plan.lanes, peers)

    def build(
        self, planned: list[FlatBucket], strategy: Strategy, driver: Driver, seed: int
    ) -> list[FlatBucket]:
        """Cut planned buckets into slices and make their state; see `buckets.build`."""
        plan = self.lane_plan
        return build(planned, strategy, self.how, driver, plan.lanes, plan.slice_bytes, seed)

    def rows(self, buckets: Sequence[FlatBucket], strategy: Strategy) -> list[Row]:
        """Return the meter's row of each bucket, with the route that was chosen for it."""
        rows = []
        for bucket in buckets:
            routes = dict.fromkeys(
                repr(self.how.choose(strategy.what, part.spec, bucket.world))
                for part in bucket.slices
            )
            route = ", ".join(routes) if self.how.needs_link else ""
            rows.append(Row(f"bucket {bucket.index}", bucket.spec.numel, route=route))
        return rows


def bind(
    strategy: Strategy,
    options: Options,
    driver: Driver,
    meter: Meter,
    planned: Sequence[FlatBucket],
    device: torch.device,
) -> Bound:
    """Measure the link where something is chosen by it, bind routes, and plan lanes and slices.

    Where the link is long or loses packets, routes and lane counts are tried, too. All ranks call
    it alike.

    Raises:
        DisagreementError: ranks bind other routes, or plan other lanes.
    """
    # 1. the link, measured only where something is chosen by it: a run without "auto" has no probe
    link, loss = None, 0.0
    if strategy.how.needs_link or "auto" in (options.lanes, options.slice_bytes):
        network = probe.measured(driver, meter, device)
        link, loss = network.between(0, 1, driver.transport), network.wire.loss
    # A link that is measured for lanes and slices alone leaves routes, and the order of sums, as
    # they are.
    route_link = link if strategy.how.needs_link else None
    # 2. the routes; the dense one is checked, too, where the strategy's is
    how = strategy.how.bind(driver.world, route_link)
    dense: Route = native() if route_link is None else auto().bind(driver.world, route_link)
    if strategy.how.verifies:
        dense = checked(direct())
    # 3. try them where formulas are not to be trusted
    tryout = Tryout()
    if link is not None and driver.world > 1 and worth_it(link, loss):
        routes = how.alternatives(strategy.what, driver.world)
        most = driver.lanes if loss >= LOSSY else min(driver.lanes, FEW_LANES)
        counts = (1, most) if options.lanes == "auto" else (driver.lanes,)
        specs = [bucket.spec for bucket in planned]
        tryout = tried(routes, counts, specs, strategy.what, link, driver, meter, device)
        how = how.corrected(tryout.times)
        if strategy.what == identity():
            dense = dense.corrected(tryout.times)
    # 4. lanes and slices, the same on all ranks, as flights on a lane must match
    lane_plan = _lane_plan(strategy, options, how, driver, meter, planned, link, tryout)
    meter.lane_plan = lane_plan.reason
    facts = {
        "route, as this rank's host has it": agree.identified(how),
        "dense route": agree.identified(dense),
        "lanes and slices": asdict(lane_plan),
    }
    agree.must_agree(driver, meter, facts, device)
    return Bound(how, dense, lane_plan, link)


def _lane_plan(
    strategy: Strategy,
    options: Options,
    how: Route,
    driver: Driver,
    meter: Meter,
    planned: Sequence[FlatBucket],
    link: Link | None,
    tryout: Tryout,
) -> LanePlan:
    """Return the lanes and slices that were given, or the best ones for the link."""
    # 1. Nothing to choose: take what was given.
    lanes, slice_bytes = options.lanes, options.slice_bytes
    if link is None or driver.world == 1 or "auto" not in (lanes, slice_bytes):
        return LanePlan(
            1 if lanes == "auto" else driver.lanes,
            None if slice_bytes == "auto" else slice_bytes,
            str(tryout),
        )
    # 2. What was tried is gone by as it was tried: the largest bucket has a slice for each lane.
    if tryout.ways:
        many = tryout.best.lanes
        size = max(bucket.spec.numel * bucket.spec.dtype.itemsize for bucket in planned)
        if slice_bytes == "auto":
            slice_bytes = -(-size // many) if many > 1 else None
        reason = (
            f"lanes={many}, slice_bytes={slice_bytes}: {tryout}, by a link of {link_text(link)}"
        )
        return LanePlan(many, slice_bytes, reason)
    # 3. Buckets of a fragment fly together; fragments take turns.
    specs, ctx = [bucket.spec for bucket in planned], agree.context_of(driver)
    together = [
        specs[fragment :: strategy.when.fragments] for fragment in range(strategy.when.fragments)
    ]
    # 4. Time the codec (the slowest rank's time counts), and reckon with each lane count that the
    #    driver has.
    codec_s = measured_codec(strategy.what, specs, ctx, driver, meter, planned[0].device)
    counts = (
        [count for count in COUNTS if count <= driver.lanes] if lanes == "auto" else [driver.lanes]
    )
    return chosen(
        together,
        strategy.what,
        how,
        ctx,
        link,
        codec_s,
        counts,
        SIZES if slice_bytes == "auto" else (slice_bytes,),
    )
