"""Recipes: every function that returns a strategy is found by name, and is the row that the design
gives."""

import inspect
import re

import pytest

from thinwire import recipes
from thinwire.bench.contestants import FULL
from thinwire.errors import StrategyError
from thinwire.how import gather, gossip, hierarchical, native, server, two_shot
from thinwire.on import deltas, gradients, momentum, nesterov, parameters, sgd
from thinwire.strategy import Strategy
from thinwire.what import (
    cast,
    dct,
    dgc,
    feedback,
    hadamard,
    identity,
    lowrank,
    on_change,
    randomk,
    sign,
    ternary,
    topk,
    uniform,
    visible,
)
from thinwire.when import delayed, every, growing, staggered, thinning, warmup

ROWS = {
    "dense": Strategy(),
    "accumulation": Strategy(when=every(8)),
    "delayed_update": Strategy(when=delayed(1, every(1))),
    "powersgd": Strategy(what=feedback(lowrank(4))),
    "dgc_sgd": Strategy(what=dgc(topk(0.001), 0.9), how=gather()),
    "ef_signsgd": Strategy(what=feedback(sign()), how=two_shot(back=feedback(sign()))),
    "terngrad": Strategy(what=ternary(), how=two_shot()),
    "lag": Strategy(what=on_change(identity(), 0.1, 10), how=gather()),
    "parameter_server": Strategy(how=server((0,))),
    "decentralised": Strategy(how=gossip("ring"), on=parameters()),
    "noloco": Strategy(when=every(50), how=gossip("pairs"), on=parameters(outer=sgd(0.7, 0.5))),
    "eager_diloco": Strategy(delayed(29, every(30)), on=deltas(nesterov(), eager=True)),
    "intellect1": Strategy(
        every(100),
        uniform(8, 0, scale="sigma", at=6.0, grid="affine"),
        two_shot(),
        deltas(nesterov(0.7, 0.9)),
    ),
    "muloco": Strategy(
        every(30), feedback(uniform(2, grid="rise"), 0.9), two_shot(), deltas(nesterov(0.8, 0.9))
    ),
    "for_link": Strategy(
        delayed(5, staggered(4, every(75))), uniform(4), two_shot(), deltas(nesterov(), alpha=0.5)
    ),
    "topk_sgd": Strategy(what=feedback(topk(0.01)), how=gather()),
    "qsgd": Strategy(what=uniform(4, 256, rounding="stochastic"), how=two_shot()),
    "demo": Strategy(
        every(1), feedback(dct(64) >> topk(32, per=4096), 0.999), gather(), gradients(then="sign")
    ),
    "onebit_adam": Strategy(
        warmup(100, every(1)), feedback(sign()), two_shot(back=feedback(sign())), momentum()
    ),
    "zero_one_adam": Strategy(
        thinning(1000, every(1)), feedback(sign()), two_shot(back=feedback(sign())), momentum()
    ),
    "two_level": Strategy(what=uniform(4), how=hierarchical(native(), two_shot(), node=8)),
    "local_sgd": Strategy(when=every(16), on=parameters()),
    "fedpaq": Strategy(every(8), uniform(4), two_shot(), deltas(outer=sgd(1.0))),
    "post_local_sgd": Strategy(when=warmup(100, every(16)), on=parameters()),
    "stl_sgd": Strategy(when=growing(1, 32, 8), on=parameters()),
    "sparta": Strategy(what=randomk(0.005), on=parameters()),
    "diloco": Strategy(when=every(100), on=deltas(outer=nesterov())),
    "streaming_diloco": Strategy(
        delayed(5, staggered(4, every(100))), uniform(4), two_shot(), deltas(nesterov(), alpha=0.5)
    ),
    "sparseloco": Strategy(
        every(30),
        feedback(topk(64, 4096) >> uniform(2, grid="rise"), 0.95),
        gather(),
        deltas(outer=sgd(1.0)),
    ),
    "pulseloco": Strategy(every(8), feedback(visible()), gather(), deltas(outer=nesterov())),
}
NEEDS = {
    "two_level": {"node": 8},
    "post_local_sgd": {"start": 100},
    "onebit_adam": {"start": 100},
    "zero_one_adam": {"until": 1000},
    "for_link": {"gbits": 1.0},
}


def test_every_recipe_is_found_by_its_name() -> None:
    public = {
        name
        for name, f in vars(recipes).items()
        if inspect.isfunction(f) and f.__module__.startswith("thinwire.strategy.recipes")
    } - {"names"}
    assert set(recipes.names()) == public == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_a_recipe_is_its_row(name: str) -> None:
    assert recipes.names()[name](**NEEDS.get(name, {})) == ROWS[name]


@pytest.mark.parametrize("name", ROWS)
def test_a_recipe_tells_its_source_and_how_it_differs(name: str) -> None:
    told = inspect.getdoc(recipes.names()[name]) or ""
    assert re.search(r"\b(19|20)\d\d\b", told)
    assert re.search(r"Differs from (the papers?|it): .", told)


@pytest.mark.parametrize("name", ["sparta", "topk_sgd", "dgc_sgd"])
def test_a_share_is_a_share_even_when_it_is_a_whole_number(name: str) -> None:
    recipe = recipes.names()[name]
    assert recipe(fraction=1) == recipe(fraction=1.0)
    with pytest.raises(StrategyError, match=r"share \(float\) lies in \(0, 1\]"):
        recipe(fraction=2)


def test_powersgd_may_start_dense() -> None:
    assert recipes.powersgd(2, start=100).when == warmup(100, every(1))
    assert recipes.powersgd(2).on == gradients()
    assert recipes.dense().what == identity()


def test_a_setting_that_cannot_be_is_refused_by_its_member() -> None:
    with pytest.raises(StrategyError, match="choose 1 to 8"):
        recipes.qsgd(bits=9)
    with pytest.raises(StrategyError, match="local progress counts twice"):
        recipes.streaming_diloco(period=4, fragments=2, tau=5)


def test_a_link_has_its_default() -> None:
    at = {gbits: recipes.for_link(gbits) for gbits in (400, 200, 100, 10, 1, 0.1)}
    assert at[400] == at[200] == Strategy(what=cast("bf16"))
    assert (at[100].what, at[100].on) == (hadamard(256) >> uniform(4), gradients())
    assert at[100].how == hierarchical((two_shot(), uniform(8)), two_shot(), "local")
    assert recipes.for_link(100, node=8).how == hierarchical(
        (two_shot(), uniform(8)), two_shot(), 8
    )
    assert at[10] == recipes.streaming_diloco(period=30)
    assert at[1] == recipes.streaming_diloco(period=75)
    assert (at[0.1].when, at[0.1].what) == (every(30), recipes.sparseloco().what)
    assert at[0.1].how == two_shot(back=recipes.sparseloco().what), (
        "sums come back as sparse as they went"
    )
    with pytest.raises(StrategyError, match=r"such as 0\.1 for 100 Mb/s"):
        recipes.for_link(0.0)


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


def test_the_two_level_recipe_may_rotate() -> None:
    assert recipes.two_level(4, rotate=256).what == hadamard(256) >> uniform(4)
