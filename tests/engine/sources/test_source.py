"""The law of sources: whatever brings the gradients, the parameters are the same, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import thinwire
from tests.engine.models import loss_of, mlp, weights_of
from tests.threads import on_threads
from thinwire import Strategy
from thinwire.core import Driver
from thinwire.engine.sources import GradientHooks, GradientSource, Manual, OptimizerSteps
from thinwire.engine.steps import BackwardSteps
from thinwire.errors import AttachError, DisagreementError
from thinwire.how import gather, two_shot
from thinwire.on import deltas, gradients, momentum
from thinwire.what import feedback, lowrank, topk, uniform
from thinwire.when import delayed, every, warmup

WORLD, STEPS = 3, 8
STRATEGIES = {
    "dense": Strategy(),
    "topk": Strategy(what=feedback(topk(0.1)), how=gather()),
    "lowrank": Strategy(what=feedback(lowrank(2))),
    "uniform": Strategy(what=feedback(uniform(4)), how=two_shot()),
    "accumulated": Strategy(when=every(2), what=feedback(topk(0.1)), how=gather()),
    "delayed": Strategy(when=delayed(1, every(1))),
    "compensated": Strategy(when=delayed(1, every(1)), on=gradients(compensate=0.1)),
    "momentum": Strategy(
        when=warmup(3, every(1)), what=feedback(topk(0.2)), how=gather(), on=momentum()
    ),
}


def trained(
    driver: Driver, strategy: Strategy, source: str, overlap: str = "backward", **options: Any
) -> dict[str, Any]:
    """Train a model of several buckets and return its weights, bytes and residuals."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(
        model,
        optimizer,
        strategy,
        driver=driver,
        source=source,  # type: ignore[arg-type]
        overlap=overlap,  # type: ignore[arg-type]
        bucket_bytes=500,
        weight=1.0 + driver.rank,
        **options,
    ) as sync:
        assert len(sync.buckets) > 2
        for step in range(STEPS):
            loss_of(model, step, driver.rank).backward()
            if source == "manual":
                sync.reduce()
            if not sync.accumulating:
                optimizer.step()
                optimizer.zero_grad()
        sync.land()
        state = sync.state_dict()
        bytes_sent = sync.report().sent_bytes
    return {"weights": weights_of(model), "state": state, "sent": bytes_sent}


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_source_gives_the_same_parameters_and_state(name: str) -> None:
    hooks, manual = (
        on_threads(WORLD, lambda driver, source=source: trained(driver, STRATEGIES[name], source))
        for source in ("hooks", "manual")
    )
    for rank in range(WORLD):
        assert torch.equal(hooks[rank]["weights"], manual[rank]["weights"])
        assert hooks[rank]["sent"] == manual[rank]["sent"] > 0
        for key, value in hooks[rank]["state"].items():
            assert torch.equal(value, manual[rank]["state"][key]), key
    assert not torch.equal(hooks[0]["weights"], weights_of(mlp()))


@pytest.mark.parametrize("overlap", ["forward", "priority"])
def test_means_of_a_manual_source_land_in_the_next_forward_pass_where_asked(overlap: str) -> None:
    plain = on_threads(WORLD, lambda driver: trained(driver, Strategy(), "hooks"))
    late = on_threads(WORLD, lambda driver: trained(driver, Strategy(), "manual", overlap))
    for rank in range(WORLD):
        assert torch.equal(plain[rank]["weights"], late[rank]["weights"])


class _Reversed(GradientSource):
    """A source as an adapter would write it: it takes parameters in the order of the model."""

    active = True

    def close(self) -> None:
        self.active = False

    def feed(self, order: int) -> None:
        self.begin()
        pairs = [(bucket, i) for bucket in self.session.buckets for i in range(len(bucket.params))]
        for bucket, i in pairs[::order]:
            self.take(bucket, i)
        self.finish()


def test_a_source_may_take_parameters_in_any_order() -> None:
    """Each rank in another order: the wire's order does not depend on it."""

    def work(driver: Driver) -> Tensor:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with thinwire.attach(
            model,
            optimizer,
            STRATEGIES["topk"],
            driver=driver,
            source="manual",
            bucket_bytes=500,
            weight=1.0 + driver.rank,
        ) as sync:
            sync.source.close()
            assert isinstance(sync.steps, BackwardSteps)
            source = sync.source = _Reversed(sync.session, sync.steps)
            for step in range(STEPS):
                loss_of(model, step, driver.rank).backward()
                source.feed(1 if driver.rank == 1 else -1)
                optimizer.step()
                optimizer.zero_grad()
        return weights_of(model)

    fed = on_threads(WORLD, work)
    hooks = on_threads(WORLD, lambda driver: trained(driver, STRATEGIES["topk"], "hooks"))
    for rank in range(WORLD):
        assert torch.equal(fed[rank], hooks[rank]["weights"])


def test_ranks_with_different_sources_are_refused() -> None:
    results = on_threads(
        2,
        lambda driver: trained(driver, Strategy(), "manual" if driver.rank else "hooks"),
    )
    for rank in range(2):
        assert isinstance(results[rank], DisagreementError)
        assert 'source differs (rank 0: "hooks"; rank 1: "manual")' in str(results[rank])


def test_each_target_gets_its_source() -> None:
    for strategy, source, kind in (
        (Strategy(), "hooks", GradientHooks),
        (Strategy(), "manual", Manual),
        (Strategy(when=every(2), on=deltas()), "hooks", OptimizerSteps),
    ):
        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        sync = thinwire.attach(model, optimizer, strategy, source=source)  # type: ignore[arg-type]
        assert type(sync.source) is kind
        sync.close()


def test_reduce_on_a_hooked_syncer_is_refused() -> None:
    for strategy in (Strategy(), Strategy(when=every(1), on=deltas())):
        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with thinwire.attach(model, optimizer, strategy) as sync:
            model(torch.ones(1, 2)).sum().backward()
            with pytest.raises(AttachError, match=r"sync\.reduce\(\) is for a syncer"):
                sync.reduce()
            optimizer.step()
            assert sync.step == 1
