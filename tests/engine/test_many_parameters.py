"""Work at attach grows as the number of parameters does."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

import thinwire
from tests.engine.test_guards import ranks
from thinwire import Strategy
from thinwire.core import Driver
from thinwire.on import deltas
from thinwire.when import every


def calls(count: int, strategy: Strategy, world: int) -> int:
    """Functions called at attach, and by one step, on rank 0."""
    seen = [0]

    def count_calls(_: Any, event: str, __: Any) -> None:
        seen[0] += event in ("call", "c_call")

    def work(driver: Driver) -> None:
        model = nn.ParameterList(nn.Parameter(torch.ones(2)) for _ in range(count))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        sys.setprofile(count_calls if driver.rank == 0 else None)
        try:
            sync = thinwire.attach(model, optimizer, strategy, driver=driver)
            torch.stack(list(model)).sum().backward()
            optimizer.step()
        finally:
            sys.setprofile(None)
        sync.close()

    for result in ranks(world, work):
        if result is not None:
            raise result
    return seen[0]


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize(
    "strategy",
    [Strategy(), Strategy(every(1), on=deltas())],
    ids=lambda each: type(each.on).__name__,
)
def test_attach_is_linear_in_the_number_of_parameters(strategy: Strategy, world: int) -> None:
    few, many = calls(100, strategy, world), calls(800, strategy, world)
    assert many < 8.8 * few
