"""Where runs end, so that everything has landed."""

from __future__ import annotations

import pytest

from thinwire import Strategy, recipes
from thinwire.errors import StrategyError
from thinwire.train.clock import landing, rounds
from thinwire.train.strategy_argument import strategy_from
from thinwire.when import every, warmup


def test_a_run_ends_where_every_fragment_has_landed() -> None:
    strategy = recipes.streaming_diloco(period=20, fragments=2, tau=1)
    end = landing(strategy, steps=12, buckets=4)
    landed = {bucket for step in range(end) for bucket in strategy.when.tick(step, 4).land}
    assert landed == {0, 1, 2, 3}
    assert end == 21
    assert landing(strategy, steps=22, buckets=4) == 31  # then at any landing
    with pytest.raises(StrategyError, match=r"lands nothing of 2 of 4 buckets to step 22"):
        landing(recipes.streaming_diloco(period=30, fragments=2, tau=1), steps=11, buckets=4)


def test_the_schedule_counts_optimiser_steps_on_deltas() -> None:
    strategy = strategy_from("diloco,period=3")
    assert landing(strategy, 7, buckets=1, accumulate=2) == 12
    assert list(rounds(strategy, 6, 1, accumulate=2)) == [range(2), range(2, 4), range(4, 6)]
    assert list(rounds(strategy, 6, 1, accumulate=2, first=4)) == [range(4, 6)]


def test_a_run_ends_where_something_lands() -> None:
    strategy = strategy_from("streaming_diloco,period=100,fragments=4,tau=5")
    assert landing(strategy, 960, buckets=4) == 980
    assert landing(strategy_from("local_sgd,period=16"), 960, buckets=2) == 960
    assert landing(strategy_from("accumulation,passes=8"), 6, buckets=2) == 8


def test_a_dense_start_accumulates_nothing() -> None:
    passes = rounds(Strategy(when=warmup(2, every(3))), steps=8, buckets=1)
    assert list(passes) == [range(1), range(1, 2), range(2, 5), range(5, 8)]
