"""Check the laws of every schedule."""

from __future__ import annotations

from itertools import pairwise

from thinwire.core import Schedule, Tick
from thinwire.testing.cases import require


def check_schedule(schedule: Schedule, *, periods: int = 4, buckets: int = 7) -> None:
    """Try every law of a schedule on a table of its ticks, for 1 to `buckets` buckets.

    Laws: a tick depends on its step alone; buckets exist, in order, once each; every launch lands
    exactly `delay` steps later and nothing else lands; no bucket has more than `depth` flights in
    the air; launches of a bucket are never closer than `gap`, and once the schedule is steady
    nothing is dense and each bucket launches once a period, at one and the same step of it; there
    are as many groups of buckets as `fragments` says.

    Args:
        schedule: the member.
        periods: how many periods, once it is steady, the table holds.
        buckets: the most buckets to try.

    Raises:
        AssertionError: a law is broken; it names the law, the member and the step.

    Example:
        >>> from thinwire.when import delayed, every
        >>> check_schedule(delayed(2, every(3)))
    """
    for count in range(1, buckets + 1):
        _table(schedule, periods, count)


def _table(schedule: Schedule, periods: int, buckets: int) -> None:
    warm = schedule.steady_from
    end = warm + periods * schedule.period + schedule.delay
    ticks = [schedule.tick(step, buckets) for step in range(end)]
    # In reverse order: a schedule that remembers the steps before would answer otherwise.
    for step in reversed(range(end)):
        require(
            schedule.tick(step, buckets) == ticks[step],
            schedule,
            "a tick depends on its step alone",
            f"step {step}",
        )
        for name in ("launch", "land"):
            named = getattr(ticks[step], name)
            right = list(named) == sorted(set(named) & set(range(buckets)))
            require(
                right,
                schedule,
                "buckets exist, in order, once each",
                f"step {step} of {buckets} buckets",
                f"{name}={named}",
            )
    # Dense steps belong to the warm-up alone.
    late = [step for step in range(warm, end) if ticks[step].dense]
    require(
        not late,
        schedule,
        "nothing is dense once it is steady",
        f"{buckets} buckets",
        f"steps {late[:8]} are",
    )
    for bucket in range(buckets):
        _bucket(schedule, ticks, bucket, warm, f"bucket {bucket} of {buckets}")
    # Buckets with the same steps are one group: there are as many as fragments, or buckets if
    # fewer.
    phases = {
        tuple(step for step in range(warm, warm + schedule.period) if bucket in ticks[step].launch)
        for bucket in range(buckets)
    }
    parts = min(buckets, schedule.fragments)
    require(
        len(phases) == parts,
        schedule,
        "fragments says how many groups of buckets there are",
        f"{buckets} buckets",
        f"{len(phases)}",
    )


def _bucket(schedule: Schedule, ticks: list[Tick], bucket: int, warm: int, case: str) -> None:
    launches = [step for step, tick in enumerate(ticks) if bucket in tick.launch]
    lands = [step for step, tick in enumerate(ticks) if bucket in tick.land]
    expected = [step + schedule.delay for step in launches if step + schedule.delay < len(ticks)]
    require(
        lands == expected,
        schedule,
        "every launch lands exactly `delay` steps later",
        case,
        f"it lands at {lands[:8]}, due at {expected[:8]}",
    )
    for step in launches:
        air = sum(
            step - schedule.delay <= other <= step for other in launches
        )  # launches come before landings
        require(
            air <= schedule.depth,
            schedule,
            "no more flights in the air than `depth`",
            f"{case}, step {step}",
            f"{air} are",
        )
    gaps = [after - before for before, after in pairwise(launches)]
    require(
        min(gaps, default=schedule.gap) >= schedule.gap,
        schedule,
        "launches are never closer than `gap`",
        case,
        f"gaps {gaps[:8]}",
    )
    for begin in range(warm, len(ticks) - schedule.period + 1, schedule.period):
        count = sum(begin <= step < begin + schedule.period for step in launches)
        require(
            count == 1,
            schedule,
            "a bucket launches once a period",
            f"{case}, steps from {begin}",
            f"{count} times",
        )
    phases = {(step - warm) % schedule.period for step in launches if step >= warm}
    require(
        len(phases) == 1,
        schedule,
        "a bucket launches at one step of its period",
        case,
        f"at {sorted(phases)[:8]}",
    )
