"""The optimisers of `thinwire train`, and the rate of each step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from thinwire import recipes
from thinwire.errors import ConfigError
from thinwire.optim.adamw import adamw, must_suit, optimizer_for, rate
from thinwire.optim.muon import Together


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))


def test_matrices_decay_and_vectors_do_not() -> None:
    net = model()
    groups = adamw(net, 1e-3, (0.9, 0.95), 0.1).param_groups
    decay = {id(param): group["weight_decay"] for group in groups for param in group["params"]}
    assert {param.dim(): decay[id(param)] for param in net.parameters()} == {1: 0.0, 2: 0.1}


def test_adamw_is_fused_on_a_cpu() -> None:
    assert all(group["fused"] for group in adamw(model(), 1e-3, (0.9, 0.95), 0.1).param_groups)


@pytest.mark.parametrize(
    ("name", "kind"), [("auto", torch.optim.AdamW), ("muon", Together), ("sgd", torch.optim.SGD)]
)
def test_an_optimiser_is_chosen_by_its_name(name: str, kind: type) -> None:
    made = optimizer_for(recipes.dense(), model(), name, 1e-3, (0.5, 0.95), 0.1)
    assert isinstance(made, kind)


def test_an_update_is_not_transformed_again() -> None:
    strategy = recipes.onebit_adam(start=3)
    must_suit(strategy, "auto")
    with pytest.raises(ConfigError, match="take auto or sgd"):
        must_suit(strategy, "adamw")


def test_the_rate_rises_falls_and_ends_at_a_tenth() -> None:
    rates = [rate(step, 960, 3e-3) for step in range(960)]
    assert max(rates) == rates[59] == 3e-3
    assert rates[:60] == sorted(rates[:60])
    assert rates[59:] == sorted(rates[59:], reverse=True)
    assert rates[-1] == pytest.approx(3e-4)
