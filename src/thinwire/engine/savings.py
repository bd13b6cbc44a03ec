"""What a lossy codec saves on a model, in bytes, before the first of them is sent."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from thinwire.core import RankContext, Route
from thinwire.engine.buckets import FlatBucket
from thinwire.strategy import Strategy
from thinwire.what import identity

LEAST = 1.2
FLOOR_BYTES = 1 << 16
"""A launch of fewer bytes is all latency, whatever the codec saves."""


def warn_if_little(
    strategy: Strategy, how: Route, buckets: Sequence[FlatBucket], ctx: RankContext, stacklevel: int
) -> None:
    """Warn, on rank 0, where a lossy codec sends hardly fewer bytes over its route than exact
    values would, and say which parameters.

    It does not warn where the data decides how many bytes there are.
    """
    # 1. Nothing to save: an exact codec, one rank, or a small model.
    what = strategy.what
    exact_bytes = sum(bucket.spec.numel * bucket.spec.dtype.itemsize for bucket in buckets)
    if not what.traits.lossy or ctx.world == 1 or ctx.rank or exact_bytes < FLOOR_BYTES:
        return

    # 2. Bytes over the route, of the codec and of exact values.
    spans = [part.spec for bucket in buckets for part in bucket.slices]
    sent = [how.sent_nbytes(what, span, ctx) for span in spans]
    exact = [how.sent_nbytes(identity(), span, ctx) for span in spans]
    if any(each is None for each in (*sent, *exact)) or not sum(filter(None, sent)):
        return
    ratio = sum(filter(None, exact)) / sum(filter(None, sent))
    if ratio >= LEAST:
        return

    # 3. Which parameters gain nothing.
    dull, largest = 0, None
    parts = [
        (bucket.spec.span(part.begin, part.end), part)
        for bucket in buckets
        for part in bucket.spec.parts
    ]
    for span, part in parts:
        nbytes = what.nbytes(span)
        if nbytes is not None and nbytes * LEAST > span.numel * span.dtype.itemsize:
            dull += 1
            largest = part if largest is None or part.numel > largest.numel else largest
    why = ""
    if largest is not None:
        why = (
            f": {dull} of {len(parts)} parameters gain nothing from it, the largest of them "
            f"{largest.name!r} of shape {largest.shape} (a "
            "matrix with a side of about the rank, such as LoRA's, or a vector, travels whole)"
        )
    warnings.warn(
        f"{what!r} loses precision and sends only {ratio:.2f}x fewer bytes on this model than "
        f"exact values{why}. Take a smaller rank, a "
        "codec of fewer bits such as uniform(4), or fewer launches such as every(10); or "
        "identity(), which loses nothing",
        stacklevel=stacklevel + 1,
    )
