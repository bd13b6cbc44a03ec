"""`attach` and `join` return synchronisers that one training loop drives alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import thinwire
from tests.threads import on_threads
from thinwire import Strategy
from thinwire.core import Driver
from thinwire.engine import Syncer
from thinwire.engine.sync import Sync
from thinwire.how import gather
from thinwire.on import deltas, nesterov
from thinwire.quorum import QuorumSyncer
from thinwire.what import feedback, topk
from thinwire.when import every

H, WORLD = 3, 2
STRATEGY = Strategy(every(H), feedback(topk(2)), gather(), deltas(nesterov(0.6, 0.9)))

Make = Callable[[nn.Module, torch.optim.Optimizer, Driver, Any], Sync]


def attached(model: nn.Module, optimizer: torch.optim.Optimizer, driver: Driver, _: Any) -> Sync:
    return thinwire.attach(model, optimizer, STRATEGY, driver=driver, bucket_bytes=24)


def joined(model: nn.Module, optimizer: torch.optim.Optimizer, driver: Driver, store: Any) -> Sync:
    return thinwire.join(
        model,
        optimizer,
        STRATEGY,
        store=store,
        rank=driver.rank,
        world=WORLD,
        quorum=WORLD,
        bucket_bytes=24,
    )


MAKES = pytest.mark.parametrize("make", [attached, joined])


def trained(make: Make, driver: Driver, store: Any) -> dict[str, Any]:
    """Train two rounds by the protocol alone, save, and load into a fresh synchroniser."""

    def fresh() -> tuple[nn.ParameterList, torch.optim.Optimizer]:
        model = nn.ParameterList([nn.Parameter(torch.arange(7.0)), nn.Parameter(torch.ones(4))])
        return model, torch.optim.SGD(model.parameters(), 0.1)

    def step(model: nn.ParameterList, optimizer: torch.optim.Optimizer) -> None:
        sum((param - driver.rank).square().sum() for param in model).backward()
        optimizer.step()
        optimizer.zero_grad()

    def flat(model: nn.Module) -> Tensor:
        return torch.cat([param.detach().reshape(-1) for param in model.parameters()])

    model, optimizer = fresh()
    out: dict[str, Any] = {}
    with make(model, optimizer, driver, store) as sync:
        assert isinstance(sync, Sync)
        assert sync.strategy == STRATEGY
        sync.weigh(1.0 + driver.rank)
        for _ in range(2 * H):
            step(model, optimizer)
        out["step"], out["weights"] = sync.step, flat(model)
        sync.check()
        step(model, optimizer)
        own = flat(model)
        with sync.common_weights() as common:
            out["common"] = flat(common)
        assert torch.equal(flat(model), own), "own weights come back"
        sync.skip_step()
        out["skipped"] = sync.step
        out["sent"] = sync.report().sent_bytes
        state = sync.state_dict()
    step(model, optimizer)  # after close: nobody listens any more
    out["after"] = sync.step
    out["residual"] = sorted(name for name in state if "residual" in name)
    return out


@MAKES
def test_one_loop_drives_both(make: Make) -> None:
    store = dist.HashStore()
    results = on_threads(WORLD, lambda driver: trained(make, driver, store))
    first, second = (results[rank] for rank in range(WORLD))
    for each in (first, second):
        assert not isinstance(each, BaseException), each
        assert (each["step"], each["skipped"], each["after"]) == (2 * H, 2 * H + 2, 2 * H + 2)
        assert torch.equal(each["common"], each["weights"]), "the anchor is where the round began"
        assert each["sent"] > 0
        assert each["residual"], "state is there to be saved"
    assert torch.equal(first["weights"], second["weights"])


def test_both_give_the_same_weights() -> None:
    """With a quorum of all ranks, and nobody late, a round is a synchronous one."""
    store = dist.HashStore()
    a = on_threads(WORLD, lambda driver: trained(attached, driver, store))
    b = on_threads(WORLD, lambda driver: trained(joined, driver, store))
    torch.testing.assert_close(a[0]["weights"], b[0]["weights"], rtol=1e-6, atol=1e-6)


def test_the_protocol_is_what_both_are_built_on() -> None:
    """Neither inherits from the other, so that no method exists only to raise."""
    assert not issubclass(QuorumSyncer, Syncer)
    assert not issubclass(Syncer, QuorumSyncer)
    public = {name for name in vars(QuorumSyncer) if not name.startswith("_")}
    assert public <= {*dir(Syncer), "version", "members"}
