"""Recipes of local steps: their knobs, and settings that cannot be."""

import pytest

from thinwire import recipes
from thinwire.bench.contestants import FULL
from thinwire.errors import StrategyError
from thinwire.strategy import Strategy
from thinwire.when import delayed, every


def test_a_whole_round_hides_an_eager_mean_and_no_more() -> None:
    assert recipes.eager_diloco(period=10).when == delayed(9, every(10))
    assert recipes.eager_diloco(period=10, tau=3).when == delayed(3, every(10))
    with pytest.raises(StrategyError, match="a delay below 10"):
        recipes.eager_diloco(period=10, tau=10)


def test_eager_fragments_are_the_benchs() -> None:
    said = recipes.eager_diloco(period=10, tau=2, lr=0.5, momentum=0.8, fragments=5, bits=2)
    timed = next(each for each in FULL if each.name == "eager streaming DiLoCo H=10, 2 bits")
    assert said == Strategy.from_toml(timed.settings["strategy"])
    with pytest.raises(StrategyError, match="at least 1 fragment"):
        recipes.eager_diloco(fragments=0)
    with pytest.raises(StrategyError, match="bits"):
        recipes.eager_diloco(bits=11)
