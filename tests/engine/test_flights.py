"""Which routes flights take."""

from __future__ import annotations

import torch

import thinwire
from tests.engine.models import mlp
from thinwire import Strategy
from thinwire.how import checked, direct, two_shot
from thinwire.when import every, warmup


def test_dense_ticks_of_a_checked_route_are_checked() -> None:
    model = mlp()
    strategy = Strategy(warmup(3, every(1)), how=checked(two_shot()))
    with thinwire.attach(model, torch.optim.SGD(model.parameters(), 0.1), strategy) as sync:
        assert sync.flights.bound.dense == checked(direct())
