"""Choose lane count and slice size for a measured link: `attach(lanes="auto", slice_bytes="auto")`.

Of flight i, its route's formula gives w_i, the seconds that it keeps the wire busy, and λ_i, those
that its messages wait; its codec computes for c_i:
    T = max(Σ w_i + λ_last + c_last,  max over lanes of Σ (s w_i + λ_i + c_i))
so either the wire is never idle before the last flight, or a lane carries one flight after another.
On a short link one lane can fill the wire, s = 1. On a long one, where more is on its way than a
connection surely keeps there, each lane has its part of it: s is their number. Steps:
    1. all ranks measure the link, and what the codec takes a value; both are the slowest rank's
    2. reckon T for each number of lanes and each size of slices
    3. of those within 10 % of the least take, on a short link, where flights side by side may meet
       at one receiver, the fewest flights, then the fewest lanes; on a long one, where a lost
       packet slows one connection of many, the most lanes, then the fewest flights
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from thinwire.core import Codec, Driver, Link, RankContext, Route, Spec
from thinwire.engine import agree
from thinwire.engine.buckets import spans
from thinwire.engine.observe.meter import Meter
from thinwire.errors import AttachError

COUNTS = (1, 2, 4)  # of lanes
MOST_LANES = 2 * COUNTS[-1]  # where packets are lost
SIZES = (None, *(mib << 20 for mib in (32, 16, 8, 4, 2, 1)))
NEAR = 1.1  # times the least time that are as good
WINDOW = 1 << 18  # bytes that any connection keeps on their way
_TRIED = 4 << 20  # bytes of values that a codec is timed on
_ENDLESS = 1e30  # bytes a second: what a flight takes on such a wire is not its bytes'


@dataclass(frozen=True)
class LanePlan:
    """A lane count and a slice size for flights. reason: why, where they were chosen here."""

    lanes: int
    slice_bytes: int | None
    reason: str = ""


def chosen(
    ticks: Sequence[Sequence[Spec]],
    codec: Codec,
    route: Route,
    ctx: RankContext,
    link: Link,
    codec_s: float,
    counts: Sequence[int],
    sizes: Sequence[int | None],
) -> LanePlan:
    """Choose the best of these lane counts and slice sizes.

    ticks: the buckets of each fragment of the model, which fly together. codec_s: of a value, from
    encoding to what all have reason.

    Raises:
        AttachError: the route has no formula of its seconds.

    Example:
        >>> from thinwire.how import two_shot
        >>> from thinwire.what import uniform
        >>> model = [Spec((), 0, n << 18, torch.float32) for n in (1, 25, 22)]  # MiB
        >>> ctx = RankContext(0, (0, 1, 2, 3), 0, 0)
        >>> near = Link(latency_s=1e-4, rate_bytes_per_s=12.5e6)
        >>> far = Link(latency_s=0.025, rate_bytes_per_s=125e6, waits=True)
        >>> for link in (near, far):
        ...     plan = chosen([model], uniform(4), two_shot(), ctx, link, 0.0, COUNTS, SIZES)
        ...     print(plan.lanes, plan.slice_bytes)
        1 None
        4 None
    """
    # More is on its way than one connection surely keeps there: lanes then add to the rate.
    far = link.delay_s * link.rate_bytes_per_s >= WINDOW
    # 2. T for each size and lane count; a tick's time is that of its slowest fragment.
    candidates = []
    for size in sizes:
        cut = [[span for spec in specs for span in spans(spec, size, codec)] for specs in ticks]
        took = [[_seconds(span, codec, route, ctx, link, codec_s) for span in tick] for tick in cut]
        candidates += [
            (max(_together(tick, lanes, far) for tick in took), sum(map(len, cut)), lanes, size)
            for lanes in counts
        ]
    # 3. The simplest of those that are nearly as fast.
    least = min(each[0] for each in candidates)
    near = (each for each in candidates if each[0] <= NEAR * least)
    seconds, flights, lanes, size = min(
        near, key=lambda each: (-each[2], each[1]) if far else each[1:3]
    )
    # The reason names the first candidate beside it: the largest slices, on the fewest lanes.
    plain = candidates[0]
    return LanePlan(
        lanes,
        size,
        f"lanes={lanes}, slice_bytes={size}: {flights} flights, {seconds:.3g} s by a link of "
        f"{link_text(link)} (lanes={plain[2]}, slice_bytes={plain[3]}: "
        f"{plain[0]:.3g} s)",
    )


def link_text(link: Link) -> str:
    """Return a link's delay and rate for people.

    Example:
        >>> link_text(Link(0.025, 125e6, waits=True))
        '50 ms an exchange and 125 MB/s'
    """
    return f"{link.delay_s * 1e3:.3g} ms an exchange and {link.rate_bytes_per_s / 1e6:.3g} MB/s"


def measured_codec(
    codec: Codec,
    specs: Sequence[Spec],
    ctx: RankContext,
    driver: Driver,
    meter: Meter,
    device: torch.device,
) -> float:
    """Return the seconds a value that encoding and opening take on the slowest rank, and as much
    again for the sum."""
    span = spans(max(specs, key=lambda spec: spec.numel), _TRIED, codec)[0]
    x = torch.randn(span.numel, generator=torch.Generator(device).manual_seed(0), device=device).to(
        span.dtype
    )
    with torch.no_grad(), torch.device(device):
        took = [_round_trip_s(codec, x.clone(), span, ctx) for _ in range(2)][
            -1
        ]  # the first one warms up
    return (
        2 * agree.slowest(driver, meter, took, "attach: measuring the codec", device) / span.numel
    )


def _round_trip_s(codec: Codec, x: Tensor, span: Spec, ctx: RankContext) -> float:
    """Return the seconds in which a codec encodes x and decodes it."""
    rounds = codec.rounds(x, span, codec.init(span, ctx), ctx)
    _done(x.device)
    begun = time.perf_counter()
    try:
        packet = next(rounds)
        while True:
            packet = rounds.send(packet.open(packet.payload, ctx.rank))
    except StopIteration:
        _done(x.device)
        return time.perf_counter() - begun


def _done(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(
    span: Spec, codec: Codec, route: Route, ctx: RankContext, link: Link, codec_s: float
) -> tuple[float, float]:
    """Return how long a flight keeps the wire busy, and how long it waits (for windows, too) and
    computes beside that."""
    open_ = replace(link, window_bytes=None)
    try:
        whole, unhindered, empty = (
            route.seconds(codec, span, ctx, each)
            for each in (link, open_, replace(open_, rate_bytes_per_s=_ENDLESS))
        )
    except NotImplementedError as error:
        raise AttachError(
            f"lanes='auto' and slice_bytes='auto' go by formulas: {error}. Say both by numbers"
        ) from error
    busy = max(unhindered - empty, 0.0)
    return busy, whole - busy + codec_s * span.numel


def _together(took: Sequence[tuple[float, float]], lanes: int, far: bool) -> float:
    """Return the seconds of all flights on so many lanes; on a far link each lane has its part of
    the wire."""
    # Flight i goes on lane i mod lanes, as in `FlatBucket.cut`.
    lanes = min(lanes, len(took))
    slower = lanes if far else 1
    alone = max(
        sum(slower * busy + beside for busy, beside in took[first::lanes]) for first in range(lanes)
    )
    # The wire carries all bytes whatever the lanes do, and then the last flight still computes.
    return max(alone, sum(busy for busy, _ in took) + took[-1][1])
