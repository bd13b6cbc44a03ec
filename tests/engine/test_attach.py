"""What `attach` refuses before anything is sent, and what it leaves behind where it fails."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import thinwire
from tests.engine.models import Normed, mlp, sgd_of
from tests.threads import on_threads
from thinwire import Strategy
from thinwire.core import Driver
from thinwire.errors import AttachError
from thinwire.how import gossip
from thinwire.on import parameters
from thinwire.when import delayed, every


def test_a_delayed_gradient_with_a_scaler_is_refused():
    model = mlp()
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(AttachError, match="GradScaler with delayed"):
        thinwire.attach(model, sgd_of(model), Strategy(delayed(1, every(1))), scaler=scaler)


def test_gossip_broadcasts_no_buffers() -> None:
    def work(driver: Driver, **settings: object) -> None:
        model = Normed()
        given = Strategy(how=gossip(), on=parameters())
        thinwire.attach(
            model, torch.optim.SGD(model.parameters(), 0.1), given, driver=driver, **settings
        ).close()  # type: ignore[arg-type]

    for error in on_threads(2, work).values():
        assert isinstance(error, AttachError)
        assert "'norm.running_mean'" in str(error)
        assert "take buffers='local'" in str(error)
    assert on_threads(2, lambda driver: work(driver, buffers="local")) == {0: None, 1: None}


def test_an_attach_that_failed_leaves_no_hooks() -> None:
    """They would put flights on lanes whose threads have ended."""

    def work(driver: Driver) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with pytest.raises(AttachError, match="weight"):
            thinwire.attach(model, optimizer, driver=driver, weight=-1.0)
        return model, optimizer

    for found in on_threads(2, work).values():
        assert not isinstance(found, BaseException), found
        model, optimizer = found
        assert not any(param._post_accumulate_grad_hooks for param in model.parameters())
        assert not optimizer._optimizer_step_pre_hooks
