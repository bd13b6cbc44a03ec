"""Recipes: every function that returns a strategy is found by name, and is the row that the design gives."""

import inspect

import pytest

from thinwire import recipes
from thinwire.errors import StrategyError
from thinwire.how import gather, hierarchical, native, two_shot
from thinwire.on import deltas, gradients, nesterov, parameters, sgd
from thinwire.strategy import Strategy
from thinwire.what import feedback, identity, lowrank, topk, uniform
from thinwire.when import delayed, every, staggered, warmup

ROWS = {
    "dense": Strategy(),
    "accumulation": Strategy(when=every(8)),
    "delayed_update": Strategy(when=delayed(1, every(1))),
    "powersgd": Strategy(what=feedback(lowrank(4))),
    "topk_sgd": Strategy(what=feedback(topk(0.01)), how=gather()),
    "qsgd": Strategy(what=uniform(4, 256, rounding="stochastic"), how=two_shot()),
    "two_level": Strategy(what=uniform(4), how=hierarchical(native(), two_shot(), node=8)),
    "local_sgd": Strategy(when=every(16), on=parameters()),
    "fedpaq": Strategy(every(8), uniform(4), two_shot(), deltas(outer=sgd(1.0))),
    "post_local_sgd": Strategy(when=warmup(100, every(16)), on=parameters()),
    "diloco": Strategy(when=every(100), on=deltas(outer=nesterov(0.7, 0.9))),
    "streaming_diloco": Strategy(delayed(5, staggered(4, every(100))), uniform(4), two_shot(), deltas(nesterov(0.7, 0.9), alpha=0.5)),
    "sparseloco": Strategy(every(30), feedback(topk(64, 4096) >> uniform(2, grid="rise"), 0.95), gather(), deltas(outer=sgd(1.0))),
}
NEEDS = {"two_level": {"node": 8}, "post_local_sgd": {"start": 100}}


def test_every_recipe_is_found_by_its_name() -> None:
    public = {name for name, f in vars(recipes).items() if inspect.isfunction(f) and f.__module__ == recipes.__name__} - {"names"}
    assert set(recipes.names()) == public == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_a_recipe_is_its_row(name: str) -> None:
    assert recipes.names()[name](**NEEDS.get(name, {})) == ROWS[name]


@pytest.mark.parametrize("name", ROWS)
def test_a_recipe_tells_its_source_or_its_rule(name: str) -> None:
    assert inspect.getdoc(recipes.names()[name])


def test_powersgd_may_start_dense() -> None:
    assert recipes.powersgd(2, start=100).when == warmup(100, every(1))
    assert recipes.powersgd(2).on == gradients()
    assert recipes.dense().what == identity()


def test_a_setting_that_cannot_be_is_refused_by_its_member() -> None:
    with pytest.raises(StrategyError, match="choose 1 to 8"):
        recipes.qsgd(bits=9)
    with pytest.raises(StrategyError, match="local progress counts twice"):
        recipes.streaming_diloco(period=4, fragments=2, tau=5)
