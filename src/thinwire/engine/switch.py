"""Change the strategy of an attached syncer at a landing, or its bucket layout at any step.

It is validated, agreed on and bound as `attach` does. Then buckets are built anew and take over the
state of the old ones, and the syncer gets new parts around its clock. Until then nothing of the
syncer has changed, so that a strategy that is refused leaves the old one at work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from thinwire.core import RankContext, travel
from thinwire.engine import agree, living, savings
from thinwire.engine.bound import Bound, bind
from thinwire.engine.buckets import FlatBucket
from thinwire.engine.flights import Flights
from thinwire.engine.guards import Watch
from thinwire.engine.landings import Landings
from thinwire.engine.observe.checks import Checks
from thinwire.engine.options import facts, problems
from thinwire.engine.pace import Pace
from thinwire.engine.resumable import Resumable
from thinwire.engine.session import Session
from thinwire.engine.shards import warn_of_rows
from thinwire.engine.state_move import move_air, move_landed, move_state
from thinwire.engine.weights import Weights
from thinwire.errors import AttachError, DisagreementError, NotLandedError
from thinwire.strategy import Strategy


class Switchable(Resumable, Protocol):
    """A syncer as a switch sees it."""

    @property
    def landings(self) -> Landings: ...
    @property
    def watch(self) -> Watch: ...
    @property
    def checks(self) -> Checks: ...


@dataclass(frozen=True)
class Switched:
    """A syncer's new parts, to go on with. lost: state with no place in them, in sentences."""

    session: Session
    flights: Flights
    weights: Weights
    lost: tuple[str, ...]


def prepare(sync: Switchable, strategy: Strategy) -> Switched:
    """Validate, agree, bind, build and move the state; see `Syncer.switch`.

    All ranks call it alike. The syncer itself stays as it is.
    """
    # 1. only at a landing: the clock is the same on all ranks, so each of them raises by itself
    session = sync.session
    driver, meter, options, device = session.driver, session.meter, session.options, session.device
    refuse_mid_period(sync)
    sync.weights.commit()
    # 2. validate and agree, as attach does
    _agree(sync, strategy)
    # 3. bind and build
    planned = options.plan(session.model, strategy)
    bound = bind(strategy, options, driver, meter, planned, device)
    bound.prepare(driver)
    built = bound.build(planned, strategy, driver, options.seed)
    # 4. move the state, and what `.grad` holds
    lost, fresh_base = move_state(session, strategy, built)
    on_gradients = strategy.on.clock == "backward"
    # Gradients, and anchors that begin anew, need equal weights; between two strategies on
    # gradients they are.
    if (on_gradients or fresh_base) and not (on_gradients and session.on_gradients):
        _refuse_unequal(session, strategy)
    if on_gradients and not session.on_gradients:
        lost += _share_optimizer(session)
    move_landed(session.buckets, built)
    # 5. the meter's rows go on, beside those of before
    _new_rows(sync, bound, strategy, built)
    ctx = RankContext(driver.rank, tuple(range(driver.world)), 0, options.seed)
    savings.warn_if_little(strategy, bound.how, built, ctx, stacklevel=3)
    warn_of_rows(strategy.what, session.replica.ranks)
    new = replace(session, strategy=strategy, buckets=built)
    weights = Weights(driver, meter, strategy.how, device, session.replica)
    weights.fractions, weights.from_ranks = sync.weights.fractions, sync.weights.from_ranks
    return Switched(new, Flights(new, bound), weights, tuple(lost))


def relaid(sync: Switchable) -> Switched:
    """Lay buckets out anew where the framework that gathers gradients has done so, and move the
    state; see `Syncer.relayout`.

    All ranks call it alike, at any step. It sends nothing.
    """
    session, bound = sync.session, sync.flights.bound
    options, strategy = session.options, session.strategy
    sync.flights.wait_all()
    planned = options.plan(session.model, strategy)
    built = bound.build(planned, strategy, session.driver, options.seed)
    lost, _ = move_state(session, strategy, built)
    move_landed(session.buckets, built)
    move_air(session.buckets, built)
    _new_rows(sync, bound, strategy, built)
    new = replace(session, buckets=built)
    return Switched(new, Flights(new, bound), sync.weights, tuple(lost))


def _new_rows(
    sync: Switchable, bound: Bound, strategy: Strategy, built: Sequence[FlatBucket]
) -> None:
    meter = sync.session.meter
    before = [
        replace(row, name=f"{row.name}, to step {sync.clock.step}", numel=0)
        for row in meter.rows
        if row.flights
    ]
    meter.rows[:] = [*bound.rows(built, strategy), *before]


def follow(
    sync: Switchable, watch: Watch, landings: Landings, checks: Checks, pace: Pace | None
) -> None:
    """Let a syncer's new parts go on from those of before."""
    sync.watch.follow(watch)
    sync.landings.follow(landings, sync.clock.step > sync.clock.began_at)
    sync.checks.follow(checks)
    if pace is not None:
        state = pace.state()  # waits for speeds that are on their way
        if sync.pace is not None:
            sync.pace.resume(state)


# -- when, and with what


def refuse_mid_period(sync: Switchable) -> None:
    """Raise unless all buckets have landed and their means are applied.

    Raises:
        NotLandedError: they have not; it counts the steps that are left.
        AttachError: a trace is being recorded.
    """
    session, clock = sync.session, sync.clock
    when, in_air = session.strategy.when, sum(len(bucket.air) for bucket in session.buckets)
    begin = f"sync.switch() at step {clock.step} of {when!r}: "
    if sync.flights.trace is not None:
        raise AttachError(f"{begin}a trace is being recorded; switch before or after it")
    # 1. Means that are to land yet belong to the old schedule.
    if clock.steps_since_sync or in_air or clock.within:
        left = steps_left(sync)
        advice = (
            f"{left} steps are left; call it then"
            if left
            else "it never lands all of them at once: save, attach again with the new strategy, "
            "or take a schedule without delay and parts"
        )
        raise NotLandedError(
            f"{begin}{clock.steps_since_sync} steps since all buckets landed, and {in_air} "
            f"launches in the air. {advice[0].upper()}{advice[1:]}"
        )
    # 2. A mean of the old strategy that no step has used is still in `.grad`.
    if session.on_gradients and not sync.landings.applied:
        raise NotLandedError(
            f"{begin}.grad holds a mean that is not applied; call it after optimizer.step()"
        )


def steps_left(sync: Switchable) -> int:
    """Return the steps until all buckets have landed at once and none flies; 0 for never."""
    session, clock = sync.session, sync.clock
    when, count = session.strategy.when, len(session.buckets)
    in_air = sum(len(bucket.air) for bucket in session.buckets)
    # Play the schedule forward: a few periods and delays show whether it ever comes to rest.
    for left in range(1, 4 * (when.period + when.delay) + 2):
        tick = when.tick(clock.step + left - 1, count)
        in_air += len(tick.launch) - len(tick.land)
        if len(tick.land) == count and in_air <= 0:
            return left
    return 0


def _agree(sync: Switchable, strategy: Strategy) -> None:
    """Raise on every rank where one cannot switch, or ranks differ in what they switch to."""
    session = sync.session
    driver, meter, model = session.driver, session.meter, session.model
    # 1. what this rank cannot switch to
    here = problems(model, session.given_optimizer, strategy, session.options, attached=True)
    if not here:
        here += sync.watch.problems()
        reason = travel.weight_refusal(strategy.how, sync.weights.fractions)
        here += [reason] if reason is not None else []
        ranks, world = driver.global_ranks, driver.world
        here += living.conflicts(model, strategy, ranks, world, own=sync.watch)
    try:
        session.refuse_changed()
        session.refuse_newly_frozen()
    except AttachError as error:
        here.append(str(error))
    # 2. what any rank cannot; a message of another call shows who did not come
    mine = _CALL + "\n".join(here).encode()
    by_rank = session.all_gather(mine, "switch: asking every rank for problems")
    if absent := [rank for rank, text in enumerate(by_rank) if not text.startswith(_CALL)]:
        raise DisagreementError(
            f"sync.switch() at step {sync.clock.step}: ranks {absent} do not call it; every rank "
            "calls it at the same step"
        )
    texts = [text.removeprefix(_CALL).decode() for text in by_rank]
    listed = agree.listed_problems(texts, "cannot switch")
    session.replica.refuse_problems(listed, meter, "switch")
    # 3. the same step and strategy
    same = {"step": sync.clock.step, **facts(model, strategy, session.options)}
    with session.replica.agreeing(meter, "switch"):
        agree.must_agree(driver, meter, same, session.device, call="switch")


_CALL = b"switch\n"


def _share_optimizer(session: Session) -> list[str]:
    """Give every rank rank 0's optimiser state: with states that differ, weights would differ, too.

    Returns:
        What is lost by it: the other ranks' own.
    """
    state = [
        (name, key, value)
        for name, param in session.trained()
        for key, value in sorted(session.optimizer.state.get(param, {}).items())
        if isinstance(value, torch.Tensor) and value.device == session.device
    ]
    if session.driver.world == 1 or not state:
        return []
    facts_of = {"optimiser state": [[n, key, list(v.shape), str(v.dtype)] for n, key, v in state]}
    agree.must_agree(session.driver, session.meter, facts_of, session.device, call="switch")
    label = "switch: rank 0's optimiser state"
    agree.broadcast(session.driver, session.meter, [v for _, _, v in state], label)
    return ["the optimiser's state of other ranks than 0: all go on with rank 0's"]


def _refuse_unequal(session: Session, strategy: Strategy) -> None:
    """Raise where ranks hold other weights and the new strategy begins from equal ones."""
    try:
        with session.replica.agreeing(session.meter, "switch"):
            agree.compare(session.driver, session.meter, session.trained(), session.device)
    except DisagreementError as error:
        raise DisagreementError(
            f"cannot switch from {session.strategy!r} to {strategy!r}, which begins with equal "
            f"weights: {error}. Save the common weights, and attach again with them"
        ) from error
