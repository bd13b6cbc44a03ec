"""Bind a strategy's route to the world and the link, as `attach` and `switch` do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from thinwire.core import Driver, Link, Route
from thinwire.engine import agree, probe
from thinwire.engine.buckets import FlatBucket, build
from thinwire.engine.lane_plan import COUNTS, SIZES, LanePlan, chosen, measured_codec
from thinwire.engine.observe.meter import Meter, Row
from thinwire.engine.options import Options
from thinwire.how import auto, checked, direct, native
from thinwire.strategy import Strategy


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
        driver.prepare(tuple(dict.fromkeys(groups)), self.lane_plan.lanes)

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

    All ranks call it alike.

    Raises:
        DisagreementError: ranks bind other routes, or plan other lanes.
    """
    # 1. the link, measured only where something is chosen by it: a run without "auto" has no probe
    link = None
    if strategy.how.needs_link or "auto" in (options.lanes, options.slice_bytes):
        link = probe.measured(driver, meter, device).between(0, 1, driver.transport)
    # A link that is measured for lanes and slices alone leaves routes, and the order of sums, as
    # they are.
    route_link = link if strategy.how.needs_link else None
    # 2. the routes; the dense one is checked, too, where the strategy's is
    how = strategy.how.bind(driver.world, route_link)
    dense: Route = native() if route_link is None else auto().bind(driver.world, route_link)
    if strategy.how.verifies:
        dense = checked(direct())
    # 3. lanes and slices, the same on all ranks, as flights on a lane must match
    lane_plan = _lane_plan(strategy, options, how, driver, meter, planned, link)
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
) -> LanePlan:
    """Return the lanes and slices that were given, or the best ones for the link."""
    # 1. Nothing to choose: take what was given.
    lanes, slice_bytes = options.lanes, options.slice_bytes
    if link is None or driver.world == 1 or "auto" not in (lanes, slice_bytes):
        return LanePlan(
            1 if lanes == "auto" else driver.lanes, None if slice_bytes == "auto" else slice_bytes
        )
    # 2. Buckets of a fragment fly together; fragments take turns.
    specs, ctx = [bucket.spec for bucket in planned], agree.context_of(driver)
    together = [
        specs[fragment :: strategy.when.fragments] for fragment in range(strategy.when.fragments)
    ]
    # 3. Time the codec (the slowest rank's time counts), and reckon with each lane count that the
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
