"""Plans are made once for what they depend on, and take no more memory than they may."""

import torch

from thinwire.core import Part, RankContext, Spec
from thinwire.how import _plan, two_shot
from thinwire.how._plans import Plan, Plans
from thinwire.what import uniform

SPEC = Spec((Part("w", (1000,), 0, "vector"),), 0, 1000, torch.float32)


def plan_of(spans: int) -> Plan:
    return Plan(dict.fromkeys(range(spans), SPEC), (0,) * spans, ())


def test_a_plan_is_made_once_and_again_for_anything_that_it_depends_on() -> None:
    made = []
    plans = Plans(1 << 20)

    def make() -> Plan:
        made.append(1)
        return plan_of(2)

    group = (0, 1, 2)
    keys = [
        (route, codec, spec, rank, ranks)
        for route in (two_shot(), two_shot(slot_bytes=1))
        for codec in (uniform(4), uniform(8))
        for spec in (SPEC, SPEC.span(0, 500))
        for rank in (0, 1)
        for ranks in (group, (0, 1))
    ]
    for _ in range(2):
        for key in keys:
            plans.get(key, make)
    assert len(made) == len(keys) == 32


def test_the_least_recently_used_goes_where_memory_is_short() -> None:
    one = plan_of(100)
    plans = Plans(3 * one.nbytes)
    for key in "abc":
        plans.get(key, lambda: one)
    plans.get("a", lambda: one)
    plans.get("d", lambda: one)
    made = []
    for key in "acdb":
        plans.get(key, lambda: made.append(1) or one)
    assert len(made) == 1  # b
    assert plans.nbytes <= plans.most_bytes


def test_a_plan_that_is_larger_than_the_cache_still_serves() -> None:
    plans = Plans(1)
    assert plans.get("a", lambda: plan_of(9)).owners == (0,) * 9
    assert plans.get("b", lambda: plan_of(8)).owners == (0,) * 8


def test_a_flight_plans_nothing_again() -> None:
    route, ctx = two_shot(), RankContext(0, (0, 1, 2), 0, 0)
    state = route.init(uniform(4), SPEC, ctx)
    next(route.carry(uniform(4), torch.ones(1000), SPEC, state, ctx))
    held = _plan._PLANS.nbytes
    for step in range(3):
        later = RankContext(0, (0, 1, 2), step, 0)
        next(route.carry(uniform(4), torch.ones(1000), SPEC, state, later))
    assert _plan._PLANS.nbytes == held
