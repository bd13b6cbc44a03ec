"""A step of some parameters at a time is the whole step, and leaves the optimiser's settings."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.engine.models import loss_of, mlp, weights_of
from thinwire.engine.overlap.partial_step import settings_of, step_some
from thinwire.errors import AttachError


def test_parts_of_a_step_make_the_same_bits_as_the_whole() -> None:
    whole, parts = mlp(), mlp()
    optimizers = [
        torch.optim.AdamW(
            [
                {"params": list(model.parameters())[:3], "lr": 1e-2},
                {"params": list(model.parameters())[3:]},
            ],
            1e-3,
        )
        for model in (whole, parts)
    ]
    for step in range(3):
        for model in (whole, parts):
            model.zero_grad()
            loss_of(model, step, 0).backward()
        optimizers[0].step()
        settings = [settings_of(group) for group in optimizers[1].param_groups]
        for group in optimizers[1].param_groups:
            group["lr"] = 99.0  # a scheduler goes on before the parts are stepped
        for param in parts.parameters():
            step_some(optimizers[1], optimizers[1].step, {id(param)}, settings)
        assert [group["lr"] for group in optimizers[1].param_groups] == [99.0, 99.0]
        for group, then in zip(optimizers[1].param_groups, settings, strict=True):
            group.update(then)
    assert torch.equal(weights_of(whole), weights_of(parts))
    assert [len(group["params"]) for group in optimizers[1].param_groups] == [3, 3]


def test_a_setting_that_moves_with_each_step_is_refused_and_put_back() -> None:
    param = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([param], 0.1)
    param.grad = torch.ones(2)

    def step() -> None:
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= 0.5

    settings = [settings_of(group) for group in optimizer.param_groups]
    with pytest.raises(AttachError, match="SGD keeps 'lr' for all parameters of a group"):
        step_some(optimizer, step, {id(param)}, settings)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert optimizer.param_groups[0]["params"] == [param]


def test_settings_are_copies_of_what_schedulers_write_into() -> None:
    rate = torch.tensor(0.1)
    group = {"params": [], "lr": rate, "momentum": 0.9}
    settings = settings_of(group)
    rate.fill_(7.0)
    assert settings == {"lr": torch.tensor(0.1), "momentum": 0.9}
