"""Where runs end, so that everything has landed."""

from __future__ import annotations

import pytest

from thinwire import recipes
from thinwire.errors import StrategyError
from thinwire.train.clock import landing


def test_a_run_ends_where_every_fragment_has_landed() -> None:
    strategy = recipes.streaming_diloco(period=20, fragments=2, tau=1)
    end = landing(strategy, steps=12, buckets=4)
    landed = {bucket for step in range(end) for bucket in strategy.when.tick(step, 4).land}
    assert landed == {0, 1, 2, 3}
    assert end == 21
    assert landing(strategy, steps=22, buckets=4) == 31  # then at any landing
    with pytest.raises(StrategyError, match=r"lands nothing of 2 of 4 buckets to step 22"):
        landing(recipes.streaming_diloco(period=30, fragments=2, tau=1), steps=11, buckets=4)
