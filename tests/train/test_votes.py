"""Ranks stop after the same step, whichever of them has had the signal."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import thinwire
from tests.threads import on_threads
from thinwire.core import Driver
from thinwire.train import votes


@pytest.mark.parametrize("signalled", [0, 1])
def test_all_stop_after_the_same_step(signalled: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(votes, "SECONDS", 0.0)  # a vote at every step

    def stopped_at(driver: Driver) -> int:
        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with thinwire.attach(model, optimizer, driver=driver) as sync:
            ballot = votes.Votes(sync, torch.device("cpu"))
            for step in range(20):
                if ballot.after(driver.rank == signalled and step >= 4, 0.01):
                    return step
            ballot.close()
        return -1

    steps = on_threads(2, stopped_at)
    assert steps[0] == steps[1]
    assert 4 <= steps[0] <= 6


def test_nobody_stops_without_a_signal() -> None:
    def stopped(driver: Driver) -> bool:
        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with thinwire.attach(model, optimizer, driver=driver) as sync:
            ballot = votes.Votes(sync, torch.device("cpu"))
            stops = [ballot.after(False, 0.01) for _ in range(5)]
            ballot.close()
            return any(stops)

    assert on_threads(2, stopped) == {0: False, 1: False}
