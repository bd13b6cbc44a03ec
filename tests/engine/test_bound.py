"""A strategy's routes are bound to the world, and slices and lanes are as they were given."""

from __future__ import annotations

import pytest
import torch

from tests.engine.models import mlp
from tests.threads import on_threads
from thinwire import Strategy
from thinwire.core import Driver
from thinwire.engine.bound import bind
from thinwire.engine.buckets import plan
from thinwire.engine.observe.meter import Meter
from thinwire.engine.options import Options
from thinwire.errors import DisagreementError
from thinwire.how import auto, checked, direct, gather, native

CPU = torch.device("cpu")


def bound_on(strategy: Strategy, slice_bytes: dict[int, int]):
    def work(driver: Driver):
        options = Options(2000, slice_bytes[driver.rank], 1, "backward", "broadcast", None, 0)
        planned = plan(mlp(), 2000, strategy.when, wide=False)
        return bind(strategy, options, driver, Meter(driver.world), planned, CPU)

    return on_threads(len(slice_bytes), work)


def test_nothing_is_measured_where_nothing_is_chosen() -> None:
    for bound in bound_on(Strategy(how=gather()), {0: 500, 1: 500}).values():
        assert bound.link is None
        assert bound.dense == native()
        assert (bound.lane_plan.lanes, bound.lane_plan.slice_bytes) == (1, 500)


def test_a_route_that_needs_the_link_has_it_measured() -> None:
    for bound in bound_on(Strategy(how=auto()), {0: 500, 1: 500}).values():
        assert bound.link is not None
        assert not isinstance(bound.dense, native)


def test_a_route_that_verifies_has_exact_values_verified_too() -> None:
    for bound in bound_on(Strategy(how=checked(direct())), {0: 500, 1: 500}).values():
        assert bound.dense == checked(direct())


def test_ranks_that_bind_otherwise_are_an_error() -> None:
    for error in bound_on(Strategy(how=gather()), {0: 500, 1: 700}).values():
        with pytest.raises(DisagreementError, match="lanes and slices differs"):
            raise error
