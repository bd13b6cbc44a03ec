"""The layout of a model whose gradients Thinwire itself gathers."""

from __future__ import annotations

from torch import nn

from thinwire import Strategy
from thinwire.engine.buckets import plan
from thinwire.engine.own_layout import OwnLayout
from thinwire.when import every


def test_it_lays_out_every_parameter_and_refuses_nothing_of_a_plain_model() -> None:
    layout, model = OwnLayout(), nn.Linear(3, 2)
    (bucket,) = layout.plan(model, 1 << 20, every(1), wide=False)
    assert bucket.spec == plan(model, 1 << 20, every(1), wide=False)[0].spec
    assert layout.refusals(model, Strategy(), "backward") == []
    assert layout.replica.ranks == 1
