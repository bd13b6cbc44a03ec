"""Give a model the weights that ranks have in common, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from thinwire.engine.flights import Flights
from thinwire.engine.guards import Watch
from thinwire.engine.session import Session
from thinwire.engine.weights import Weights


@contextmanager
def in_common(session: Session, flights: Flights, weights: Weights, watch: Watch) -> Iterator[None]:
    """Show the anchor on deltas, and the mean over ranks (dense) on parameters; every rank enters
    alike. Own weights come back at the end."""
    # 1. Own weights are kept aside; common ones are held, or a mean that is taken now.
    on = session.strategy.on
    weight = weights.own if on.mean else 1.0
    own = [bucket.weights() for bucket in session.buckets]
    common = [on.common(bucket, bucket.state) for bucket in session.buckets]
    shown = [
        flights.mean(bucket, mine, weight) if held is None else held
        for bucket, mine, held in zip(session.buckets, own, common, strict=True)
    ]
    # 2. Meanwhile the watch takes them for no load.
    watch.paused = True
    for bucket, flat in zip(session.buckets, shown, strict=True):
        bucket.set_weights(flat)
    try:
        yield
    finally:
        watch.paused = False
        for bucket, mine in zip(session.buckets, own, strict=True):
            bucket.set_weights(mine)
