"""On how many lanes and in slices of which size a model's flights go best over a link: `attach(lanes="auto", slice_bytes="auto")`.

Of flight i, its route's formula tells w_i, for which it keeps the wire busy, and λ_i, which its messages wait; its codec computes for c_i:
    T = max(Σ w_i + λ_last + c_last,  max over lanes of Σ (w_i + λ_i + c_i))
so either the wire is never idle before the last flight, or a lane carries one flight after another.
Steps:
    1. all ranks measure the link, on a long one by several lanes at once, too (a connection carries no more than its window a round trip),
       and what the codec takes a value; all numbers are the slowest rank's
    2. reckon T for each number of lanes and each size of slices
    3. of those within 10 % of the least, take the one with the fewest flights, then with the fewest lanes
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch

from thinwire.core import Codec, Driver, Link, Route, Seat, Spec
from thinwire.engine import agree
from thinwire.engine.buckets import spans
from thinwire.engine.meter import Meter

Auto: TypeAlias = Literal["auto"]

COUNTS = (1, 2, 4)  # of lanes
MOST_LANES = COUNTS[-1]
SIZES = (None, *(mib << 20 for mib in (32, 16, 8, 4, 2, 1)))
NEAR = 1.1  # flights side by side may meet at one receiver, of which the formulas know nothing: up to a tenth
_TRIED = 4 << 20  # bytes of values that a codec is timed on
_ENDLESS = 1e30  # bytes a second: what a flight takes on such a wire is not its bytes'


@dataclass(frozen=True)
class Pieces:
    """How flights are cut and laid out. said: why, where it was chosen here."""

    lanes: int
    slice_bytes: int | None
    said: str = ""


def chosen(
    specs: Sequence[Spec],
    codec: Codec,
    route: Route,
    seat: Seat,
    links: Mapping[int, Link],
    codec_s: float,
    sizes: Sequence[int | None],
) -> Pieces:
    """The best of these numbers of lanes and sizes of slices.

    links: by the number of lanes, the link as so many see it together. codec_s: of a value, from encoding to what all have said.

    Example:
        >>> from thinwire.how import two_shot
        >>> from thinwire.what import uniform
        >>> model = [Spec((), 0, n << 18, torch.float32) for n in (1, 25, 22)]  # MiB
        >>> def on(link: Link, codec_s: float) -> Pieces:
        ...     links = dict.fromkeys(COUNTS, link)
        ...     return chosen(model, uniform(4), two_shot(), Seat(0, (0, 1, 2, 3), 0, 0), links, codec_s, SIZES)
        >>> near, far = Link(latency_s=1e-4, rate_bytes_per_s=12.5e6), Link(latency_s=0.025, rate_bytes_per_s=125e6, waits=True)
        >>> [(found.lanes, found.slice_bytes) for found in (on(near, 0.0), on(far, 0.0))]
        [(1, None), (4, None)]
    """
    found = []
    for size in sizes:
        cut = [span for spec in specs for span in spans(spec, size, codec)]
        for lanes, link in links.items():
            seconds = _together([_seconds(span, codec, route, seat, link, codec_s) for span in cut], lanes)
            found.append((seconds, len(cut), lanes, size))
    least = min(each[0] for each in found)
    seconds, flights, lanes, size = min((each for each in found if each[0] <= NEAR * least), key=lambda each: each[1:3])
    link, plain = links[lanes], found[0]
    return Pieces(
        lanes,
        size,
        f"lanes={lanes}, slice_bytes={size}: {flights} flights, {seconds:.3g} s by a link of {link.delay_s * 1e3:.3g} ms an exchange and "
        f"{link.rate_bytes_per_s / 1e6:.3g} MB/s (lanes={plain[2]}, slice_bytes={plain[3]}: {plain[0]:.3g} s)",
    )


def measured_codec(codec: Codec, specs: Sequence[Spec], seat: Seat, driver: Driver, meter: Meter, device: torch.device) -> float:
    """Seconds a value that encoding and opening take on the slowest rank, and as much again for the sum."""
    span = spans(max(specs, key=lambda spec: spec.numel), _TRIED, codec)[0]
    x = torch.randn(span.numel, generator=torch.Generator(device).manual_seed(0), device=device).to(span.dtype)
    took = 0.0
    for _ in range(2):  # the first one warms up
        values, state = x.clone(), codec.init(span, seat)
        _done(device)
        begun = time.perf_counter()
        rounds = codec.rounds(values, span, state, seat)
        try:
            packet = next(rounds)
            while True:
                packet = rounds.send(packet.open(packet.payload, seat.rank))
        except StopIteration:
            _done(device)
            took = time.perf_counter() - begun
    told = agree.share(driver, meter, struct.pack("<d", took), "attach: measuring the codec", device)
    return 2 * max(float(struct.unpack("<d", each)[0]) for each in told) / span.numel


def _done(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(span: Spec, codec: Codec, route: Route, seat: Seat, link: Link, codec_s: float) -> tuple[float, float]:
    """How long a flight keeps the wire busy, and how long it waits and computes beside that."""
    whole = route.seconds(codec, span, seat, link)
    waits = min(route.seconds(codec, span, seat, replace(link, rate_bytes_per_s=_ENDLESS)), whole)
    return whole - waits, waits + codec_s * span.numel


def _together(took: Sequence[tuple[float, float]], lanes: int) -> float:
    """Seconds of all flights on so many lanes."""
    alone = max(sum(busy + beside for busy, beside in took[lane::lanes]) for lane in range(min(lanes, len(took))))
    return max(alone, sum(busy for busy, _ in took) + took[-1][1])
