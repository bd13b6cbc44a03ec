"""Local steps are counted by hooks of the optimiser, or of the scaler around it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import thinwire
from tests.engine.models import loss_of, mlp
from tests.threads import on_threads
from thinwire import Strategy
from thinwire.core import Driver
from thinwire.errors import NotLandedError
from thinwire.on import deltas
from thinwire.when import every


def test_two_optimizers_of_one_model_take_turns_on_local_steps() -> None:
    """The attached one steps last; that the other has moved weights is no load."""

    def work(driver: Driver) -> int:
        model = mlp()
        first = torch.optim.SGD(model[0].parameters(), 0.05)
        last = torch.optim.SGD([*model[2].parameters(), *model[4].parameters()], 0.05)
        with thinwire.attach(model, last, Strategy(every(2), on=deltas()), driver=driver) as sync:
            for step in range(4):
                loss_of(model, step, driver.rank).backward()
                first.step()
                last.step()
                model.zero_grad()
            sync.check()
            return sync.step

    assert on_threads(2, work) == {0: 4, 1: 4}


def test_a_scaler_that_is_off_counts_plain_steps_and_one_that_is_on_wants_its_own() -> None:
    for enabled in (False, True):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        scaler = torch.amp.GradScaler("cpu", enabled=enabled)
        with thinwire.attach(
            model, optimizer, Strategy(every(2), on=deltas()), scaler=scaler
        ) as sync:
            scaler.scale(loss_of(model, 0, 0)).backward()
            if enabled:
                with pytest.raises(NotLandedError, match=r"counted in scaler\.step"):
                    optimizer.step()
                scaler.step(optimizer)
            else:
                optimizer.step()
            assert sync.step == 1
            scaler.update()
            scaler.scale(loss_of(model, 1, 0)).backward()
            if enabled:
                scaler.step(optimizer)
            else:
                optimizer.step()


def attached() -> tuple[nn.Module, torch.optim.SGD, thinwire.Syncer]:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    strategy = Strategy(every(2), on=deltas())
    return model, optimizer, thinwire.attach(model, optimizer, strategy)


def test_a_step_without_a_backward_pass_is_no_step_of_the_schedule() -> None:
    model, optimizer, sync = attached()
    optimizer.step()  # without a gradient there is nothing to warn of
    assert sync.step == 0
    loss_of(model, 0, 0).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    with pytest.warns(UserWarning, match="without a backward pass before it does not count"):
        optimizer.step()
    assert sync.step == 1
    sync.skip_step()
    assert sync.step == 2
    sync.close()


def test_after_the_end_steps_are_not_counted_and_the_scaler_is_as_it_was() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    scaler = torch.amp.GradScaler("cpu")
    before = scaler.step
    sync = thinwire.attach(model, optimizer, Strategy(every(1), on=deltas()), scaler=scaler)
    assert scaler.step != before
    assert sync.source.active
    sync.close()
    assert scaler.step == before
    assert not sync.source.active
    scaler.scale(loss_of(model, 0, 0)).backward()
    scaler.step(optimizer)
    optimizer.step()
    assert sync.step == 0
