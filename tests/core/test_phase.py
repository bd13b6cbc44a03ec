"""A user's profiler sees each phase by name, and it costs next to nothing where none runs."""

from __future__ import annotations

import timeit

import pytest
import torch
from torch import Tensor

import thinwire
from tests.engine.models import loss_of, mlp, weights_of
from tests.threads import on_threads
from thinwire import Strategy
from thinwire.core import Driver
from thinwire.core.phase import phase
from thinwire.how import gather
from thinwire.on import deltas
from thinwire.what import feedback, topk
from thinwire.when import every

STEP = {"begin", "read", "launch", "wait", "land", "write"}
STRATEGIES = {
    "gradients": (Strategy(what=feedback(topk(0.1)), how=gather()), STEP | {"finish"}),
    "deltas": (Strategy(when=every(2), what=feedback(topk(0.1)), how=gather(), on=deltas()), STEP),
}


def trained(driver: Driver, strategy: Strategy, profiled: bool) -> tuple[Tensor, set[str]]:
    """Train two ranks for four steps; rank 0 profiles the last two of them."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    names: set[str] = set()
    with thinwire.attach(
        model, optimizer, strategy, driver=driver, bucket_bytes=500, check_every=None
    ) as sync:

        def steps(of: range) -> None:
            for step in of:
                loss_of(model, step, driver.rank).backward()
                optimizer.step()
                optimizer.zero_grad()
            sync.check()
            sync.state_dict()

        steps(range(2))
        if profiled and driver.rank == 0:
            with torch.profiler.profile() as profile:
                steps(range(2, 4))
            names = {event.key for event in profile.key_averages()}
        else:
            steps(range(2, 4))
    return weights_of(model), names


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_profile_of_a_step_shows_the_phases_and_changes_no_bit(name: str) -> None:
    strategy, expected = STRATEGIES[name]
    plain = on_threads(2, lambda driver: trained(driver, strategy, profiled=False))
    seen = on_threads(2, lambda driver: trained(driver, strategy, profiled=True))
    ours = {key.removeprefix("thinwire::") for key in seen[0][1] if key.startswith("thinwire::")}
    assert ours == expected | {"agree", "save"}
    for rank in range(2):
        assert torch.equal(plain[rank][0], seen[rank][0])


def test_a_phase_costs_at_most_5_us_where_no_profiler_runs() -> None:
    def one() -> None:
        with phase("wait", 3):
            pass

    assert min(timeit.repeat(one, number=1000, repeat=20)) / 1000 <= 5e-6
