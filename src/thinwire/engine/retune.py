"""Measure the link anew in mid-run, and go on by the lanes, slices and routes that suit it now.

All ranks do so at the beginning of the same step, once all of them have voted that the wire has
left the plan (`wire_watch.py`). Buckets stay as they are. Their slices are cut anew, and the state
of codecs and routes moves into them by parameter and element, as at a switch of strategy.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

from thinwire.core import Link
from thinwire.engine.bound import bind
from thinwire.engine.flights import Flights
from thinwire.engine.lane_plan import link_text
from thinwire.engine.session import Session
from thinwire.engine.state_move import move_state
from thinwire.engine.wire_watch import FASTER, SLOWER


def retune(session: Session, flights: Flights, step: int) -> bool:
    """Measure the link and rebind where the wire has left the plan on every rank.

    It waits until nothing is in the air: a flight in progress is of the old slices.

    Returns:
        Whether slices were cut anew.
    """
    wire = flights.wire
    if wire is None or not wire.must_measure or any(bucket.air for bucket in session.buckets):
        return False
    strategy, driver, meter = session.strategy, session.driver, session.meter
    before, speed = flights.bound.link, wire.speed
    assert before is not None
    # 1. Measure and choose, as attach does.
    planned = session.options.plan(session.model, strategy)
    bound = bind(strategy, session.options, driver, meter, planned, session.device)
    assert bound.link is not None
    message = (
        f"step {step}: the wire is {speed:.2g} times as fast as when lanes and routes were chosen; "
        f"measured anew: {link_text(before)} then, {link_text(bound.link)} now"
    )
    # 2. Where the link is as it was, all stays as it is.
    changed = _differs(before, bound.link)
    if changed:
        bound.prepare(driver)
        built = bound.build(planned, strategy, driver, session.options.seed)
        lost, _ = move_state(session, strategy, built)
        meter.rows[:] = [
            *bound.rows(built, strategy),
            *(
                replace(row, name=f"{row.name}, to step {step}", numel=0)
                for row in meter.rows
                if row.flights
            ),
        ]
        for bucket, new in zip(session.buckets, built, strict=True):
            bucket.slices = new.slices
        flights.rebind(bound)
        message += "".join(f"; {each}" for each in lost)
    else:
        message += ", so all stays as it is"
    # 3. Say so, once on each rank.
    meter.remeasured.append(message)
    warnings.warn(message, stacklevel=2)
    wire.restart(changed)
    return changed


def _differs(before: Link, now: Link) -> bool:
    """Return whether a link's rate or delay has left what it was by half.

    Example:
        >>> _differs(Link(0.01, 1e7), Link(0.01, 0.9e7)), _differs(Link(0.01, 1e7), Link(0.01, 5e6))
        (False, True)
    """
    rate = now.rate_bytes_per_s / before.rate_bytes_per_s
    delay = before.delay_s / now.delay_s if now.delay_s else 1.0
    return not (SLOWER <= rate <= FASTER and SLOWER <= delay <= FASTER)
