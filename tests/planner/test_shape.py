"""Models by their sizes, without storage."""

import pytest
import torch
from torch import nn

from thinwire.planner.shape import Named, Shape


@pytest.mark.parametrize("parameters", [10**6, 85_000_000, 10**9, 70 * 10**9])
def test_a_shape_has_about_the_parameters_that_are_asked_for(parameters: int) -> None:
    shape = Shape.about(parameters)
    assert shape.parameters == pytest.approx(parameters, rel=0.1)
    assert shape.width % 8 == 0


def test_a_module_has_no_storage() -> None:
    module = Shape(16, 2).module()
    assert sum(param.numel() for param in module.parameters()) == Shape(16, 2).parameters
    assert all(param.is_meta for param in module.parameters())


def test_of_a_named_model_what_is_frozen_does_not_count() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    model[1].requires_grad_(False)
    named = Named("two", model)
    assert (named.parameters, named.text) == (16, "two (16 parameters)")
    assert named.module() is model
