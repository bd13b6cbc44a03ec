"""Recipes that send gradients: their knobs, and settings that cannot be."""

from thinwire import recipes
from thinwire.on import gradients
from thinwire.what import hadamard, identity, uniform
from thinwire.when import every, warmup


def test_powersgd_may_start_dense() -> None:
    assert recipes.powersgd(2, start=100).when == warmup(100, every(1))
    assert recipes.powersgd(2).on == gradients()
    assert recipes.dense().what == identity()


def test_the_two_level_recipe_may_rotate() -> None:
    assert recipes.two_level(4, rotate=256).what == hadamard(256) >> uniform(4)
