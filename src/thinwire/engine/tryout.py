"""Try routes and lane counts on a link whose formulas are not to be trusted, at attach.

A formula knows neither what lost packets do to a connection nor how one starts again after a pause.
On a link that is long or loses packets, flights of the model's own kind show both. Steps:
    1. of the routes take the fastest by formula, and the transport's own all-reduce
    2. carry a span of the model by each on the most lanes, and by the transport's own, or else the
       fastest by formula, on the fewest; all ranks take the slowest rank's time
    3. carry it once more by those within NEAR of the best, and keep the lesser time of each; of
       those that are about as fast as the fastest take the one with the fewest lanes
All of it ends once BUDGET_S has passed; what was sent is counted as the link probe's. Every rank
decides by the same numbers, so all keep the same way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from thinwire.core import Codec, Driver, Handle, Link, RankContext, Route, Spec
from thinwire.engine import agree
from thinwire.engine.buckets import spans
from thinwire.engine.observe.meter import Meter
from thinwire.engine.probe import LABEL
from thinwire.how import native

LONG_S = 0.002  # of an exchange, from which on the formulas are not to be trusted
LOSSY = 2e-4  # of segments sent again, alike
FEW_LANES = 4  # the most that are tried where little is lost
MOST_ROUTES = 3
SPAN_S, MOST_BYTES = 1.5, 32 << 20  # of a flight that is tried: seconds by formula, bytes of values
BUDGET_S = 10.0
NEAR, ALIKE = 1.15, 1.05  # times the least seconds: worth another try; as good


@dataclass(frozen=True)
class Way:
    """A route on so many lanes, and the seconds that it took to carry the span."""

    route: Route
    lanes: int
    seconds: float


@dataclass(frozen=True)
class Tryout:
    """What was tried, the fastest first; nothing where the formulas do.

    nbytes: of the span. formula_s: by route, the seconds of a slice on the best way's lanes.
    """

    ways: tuple[Way, ...] = ()
    nbytes: int = 0
    formula_s: Mapping[Route, float] = field(default_factory=dict)

    @property
    def best(self) -> Way:
        """Return the way with the fewest lanes that is about as fast as the fastest."""
        return best_of(self.ways)

    def times(self, route: Route) -> float:
        """Return how many times the formula of a slice a route took, at its best.

        A route that was not tried is taken to be as slow as the slowest of those that were.
        """
        least: dict[Route, float] = {}
        for way in reversed(self.ways):  # a route's fastest way comes last
            least[way.route] = way.seconds / self.formula_s[way.route]
        return least.get(route, max(least.values(), default=1.0))

    def __str__(self) -> str:
        shown = ", ".join(
            f"{way.route!r} on {way.lanes} {'lane' if way.lanes == 1 else 'lanes'} "
            f"{way.seconds:.3g} s"
            for way in self.ways
        )
        return f"tried with {self.nbytes / 1e6:.3g} MB: {shown}" if self.ways else ""


def worth_it(link: Link, loss: float) -> bool:
    """Return whether a link is one on which formulas are not to be trusted.

    Example:
        >>> near, far = Link(1e-4, 125e6, waits=True), Link(0.015, 12.5e6, waits=True)
        >>> worth_it(near, 0.0), worth_it(near, 0.005), worth_it(far, 0.0)
        (False, True, True)
    """
    return link.delay_s >= LONG_S or loss >= LOSSY


def tried(
    routes: Sequence[Route],
    counts: Sequence[int],
    specs: Sequence[Spec],
    codec: Codec,
    link: Link,
    driver: Driver,
    meter: Meter,
    device: torch.device,
) -> Tryout:
    """Carry a span of the model by several ways and return how long each took.

    Every rank calls it alike.

    Args:
        routes: bound, that carry the codec.
        counts: of lanes, the least and the most.
        specs: of the buckets.
    """
    # 1. The ways.
    ctx = agree.context_of(driver)
    span = _span(routes, specs, codec, ctx, link)
    chosen = _fastest(routes, codec, span, ctx, link)
    ways = [(route, max(counts)) for route in chosen]
    if min(counts) < max(counts):
        ways.append((chosen[0], min(counts)))
    if len(ways) < 2:
        return Tryout()
    groups = [group for route in chosen for group in route.groups(driver.world)]
    driver.prepare(tuple(dict.fromkeys(groups)), max(counts))
    # 2. and 3. Two rounds, the second of those that are near the best.
    flown = _Flown(span, codec, ctx, driver, meter, device)
    took: dict[tuple[Route, int], float] = {}
    for _ in range(2):
        for way in ways:
            if flown.passed_s < BUDGET_S:
                took[way] = min(flown.seconds(*way), took.get(way, math.inf))
        ways = [way for way in ways if way in took and took[way] <= NEAR * min(took.values())]
    if not all(took.values()):
        return Tryout()  # ranks of one process: no time passes on their wires
    timed = sorted((Way(*way, seconds) for way, seconds in took.items()), key=lambda w: w.seconds)
    piece = _cut(span, best_of(timed).lanes, codec)[0]
    formula_s = {route: route.seconds(codec, piece, ctx, link) for route in chosen}
    return Tryout(tuple(timed), span.numel * span.dtype.itemsize, formula_s)


def best_of(ways: Sequence[Way]) -> Way:
    """Return, of ways in order of their seconds, the one with the fewest lanes that is about as
    fast as the first."""
    near = (way for way in ways if way.seconds <= ALIKE * ways[0].seconds)
    return min(near, key=lambda way: way.lanes)


def _fastest(
    routes: Sequence[Route], codec: Codec, span: Spec, ctx: RankContext, link: Link
) -> list[Route]:
    """Return the routes to try: the transport's own all-reduce first, where it is among them, and
    the fastest by formula."""
    seconds = {route: route.seconds(codec, span, ctx, link) for route in routes}
    # Routes of one formula move the same messages: one of them is enough.
    alike: dict[float, Route] = {}
    for route in routes:
        if route != native():
            alike.setdefault(seconds[route], route)
    own = [route for route in routes if route == native()]
    return [*own, *(alike[least] for least in sorted(alike))][:MOST_ROUTES]


def _cut(span: Spec, lanes: int, codec: Codec) -> list[Spec]:
    """Cut a span into a slice for each lane, as `attach` cuts buckets."""
    return spans(span, -(-span.numel * span.dtype.itemsize // lanes), codec)


def _span(
    routes: Sequence[Route], specs: Sequence[Spec], codec: Codec, ctx: RankContext, link: Link
) -> Spec:
    """Return a span of the largest bucket that takes SPAN_S or less by the fastest formula."""
    largest = max(specs, key=lambda spec: spec.numel)
    whole = min(largest.numel * largest.dtype.itemsize, MOST_BYTES)
    span = spans(largest, whole, codec)[0]
    seconds = min(route.seconds(codec, span, ctx, link) for route in routes)
    return spans(largest, max(int(whole * min(SPAN_S / seconds, 1.0)), 1), codec)[0]


class _Flown:
    """Carries the span, and times it. passed_s: the seconds of all turns so far."""

    def __init__(
        self,
        span: Spec,
        codec: Codec,
        ctx: RankContext,
        driver: Driver,
        meter: Meter,
        device: torch.device,
    ) -> None:
        self._span, self._codec, self._ctx = span, codec, ctx
        self._driver, self._meter, self._device = driver, meter, device
        self.passed_s = 0.0
        generator = torch.Generator(device).manual_seed(0)
        self._x = torch.randn(span.numel, generator=generator, device=device).to(span.dtype)

    def seconds(self, route: Route, lanes: int) -> float:
        """Return the seconds in which the slowest rank's lanes carry the span by a route."""
        cut = _cut(self._span, lanes, self._codec)
        handles: list[Handle[Any]] = []
        with torch.no_grad(), torch.device(self._device):
            for i, each in enumerate(cut):
                x = self._of(each)
                # State that is thrown away afterwards.
                state = route.init(self._codec, each, self._ctx)
                flight = route.carry(self._codec, x, each, state, self._ctx)
                handles.append(self._driver.start(flight, i % lanes, LABEL))
            for handle in handles:
                handle.wait()
        # What its lanes did, not this thread: a driver may have a clock of its own.
        by_lane = [
            sum(h.wire_s + h.encode_s for h in handles[lane::lanes]) for lane in range(lanes)
        ]
        for handle in handles:
            self._meter.count(LABEL, handle.sent_bytes)
        took = agree.slowest(self._driver, self._meter, max(by_lane), LABEL, self._device)
        self.passed_s += took
        return took

    def _of(self, span: Spec) -> Tensor:
        at = span.begin - self._span.begin
        return self._x[at : at + span.numel].clone()
