"""Recipes: every function that returns a strategy is found by name, and is the row that the design
gives."""

import inspect
import re

import pytest

from tests.strategy.recipes.rows import NEEDS, ROWS
from thinwire import recipes
from thinwire.errors import StrategyError
from thinwire.how import hierarchical, two_shot
from thinwire.on import gradients
from thinwire.strategy import Strategy
from thinwire.what import cast, hadamard, uniform
from thinwire.when import every


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
