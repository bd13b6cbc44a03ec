"""Bytes in closed form are those that an engine sends."""

import pytest
import torch
from torch import nn

from tests.planner.strategies import SMALL, STRATEGIES, WORLD
from tests.threads import on_threads
from thinwire import attach
from thinwire.core import Driver
from thinwire.how import gather
from thinwire.on import gradients
from thinwire.planner.ledger import sent
from thinwire.planner.memory import buckets_of
from thinwire.planner.shape import Named
from thinwire.strategy import Strategy
from thinwire.what import by_role, uniform
from thinwire.when import every


@pytest.mark.parametrize("name", STRATEGIES)
def test_bytes_are_what_engines_send(name: str) -> None:
    """Ranks train a model of that shape for a whole period after any warm-up, and their meters say
    the same."""
    strategy, w = STRATEGIES[name], SMALL.width

    def work(driver: Driver) -> list[float]:
        torch.manual_seed(driver.rank)
        model = nn.ParameterList(
            torch.randn(s)
            for _ in range(SMALL.layers)
            for s in ((3 * w, w), (w, w), (4 * w, w), (w, 4 * w))
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        begin, period = strategy.when.steady_from, strategy.when.period
        seen = []
        with attach(model, optimizer, strategy, driver=driver) as sync:
            for step in range(begin + strategy.when.delay + period):
                sum((param * torch.randn_like(param)).sum() for param in model).backward()  # type: ignore[union-attr]
                if strategy.on.clock == "step" or strategy.when.tick(step, len(sync.buckets)).land:
                    optimizer.step()
                    optimizer.zero_grad()
                seen.append(sync.report().sent_bytes)
            return [
                seen[begin + strategy.when.delay - 1] if begin + strategy.when.delay else 0.0,
                seen[-1],
            ]

    seen = on_threads(WORLD, work)
    assert all(isinstance(each, list) for each in seen.values()), seen
    mean = (
        sum(last - first for first, last in seen.values())
        / WORLD
        / SMALL.parameters
        / strategy.when.period
    )
    stated = sent(strategy, SMALL, WORLD).sent_bytes
    assert (
        stated == pytest.approx(mean, rel=1e-9)
        if name not in ("lag", "pulseloco")
        else stated is None
    ), "of these the data decides"


@pytest.mark.parametrize("head_first", [False, True])
def test_matrices_of_one_shape_and_two_roles_send_what_each_of_them_does(head_first: bool) -> None:
    """An embedding in 8 bits, and a head of its shape in 1, whichever comes first."""
    with torch.device("meta"):
        modules = [nn.Embedding(16384, 64), nn.Linear(64, 16384, bias=False)]
        model = nn.Sequential(*reversed(modules) if head_first else modules)
    strategy = Strategy(
        every(1),
        by_role(embedding=uniform(8), matrix=uniform(1, grid="rise")),
        gather(),
        gradients(),
    )
    assert len(buckets_of(strategy, model)) == 2
    assert sent(strategy, Named("two", model), 2).sent_bytes == pytest.approx(
        (8 + 1) / 2 / 8, rel=0.05
    )
