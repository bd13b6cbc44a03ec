"""A syncer among others, and after it is closed."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch

import thinwire
from tests.engine.models import loss_of, mlp, sgd_of, train
from tests.ranks import run_ranks
from thinwire import Strategy
from thinwire.errors import FlightError
from thinwire.on import deltas, sgd
from thinwire.when import every


def test_closing_one_of_two_syncers_on_a_scaler_leaves_the_other_at_work():
    scaler = torch.amp.GradScaler("cpu")
    models = [mlp(), mlp()]
    optimizers = [sgd_of(model) for model in models]
    strategy = Strategy(every(1), on=deltas(outer=sgd(1.0)))
    first, second = (
        thinwire.attach(m, o, strategy, scaler=scaler)
        for m, o in zip(models, optimizers, strict=True)
    )
    first.close()
    scaler.scale(loss_of(models[1], 0, 0)).backward()
    scaler.step(optimizers[1])
    scaler.update()
    assert (first.step, second.step) == (0, 1)
    second.close()


def _after_close(rank: int) -> list[str]:
    model, said = mlp(), []
    with thinwire.attach(
        model, torch.optim.SGD(model.parameters(), 0.1), timeout=timedelta(seconds=20)
    ) as sync:
        train(model, sync.optimizer, rank, range(1))
    for ask in (sync.check, lambda: sync.all_gather(b"", "late"), lambda: sync.weigh(1.0)):
        with pytest.raises(FlightError) as error:
            ask()
        said.append(str(error.value))
    return said


def test_nothing_waits_for_what_is_asked_after_close() -> None:
    for said in run_ranks(2, _after_close, timeout=60):
        assert all("the syncer is closed" in each for each in said)
