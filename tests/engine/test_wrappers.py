"""Other frameworks around a model or an optimiser: refused, in words that say what to do, or taken
for what they are."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import thinwire
from tests.engine.models import loss_of, mlp, train, weights_of
from tests.engine.test_guards import ranks
from thinwire import Strategy, recipes
from thinwire.core import Driver
from thinwire.errors import AttachError
from thinwire.on import deltas
from thinwire.when import every

LOCAL = Strategy(every(2), on=deltas())


def sgd_of(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), 0.1)


@pytest.mark.parametrize("strategy", [LOCAL, Strategy()], ids=lambda each: type(each.on).__name__)
@pytest.mark.parametrize("first", ["attach", "DDP"])
@pytest.mark.usefixtures("group")
def test_ddp_around_an_attached_model_is_found_at_the_first_backward(
    strategy: Strategy, first: str
) -> None:
    model = mlp()
    wrapped = DistributedDataParallel(model) if first == "DDP" else None
    with thinwire.attach(model, sgd_of(model), strategy):
        wrapped = wrapped or DistributedDataParallel(nn.Sequential(model))
        loss = wrapped(torch.zeros(1, 24)).sum()
        with pytest.raises(
            AttachError, match="attached and in DistributedDataParallel, too"
        ) as error:
            loss.backward()
    assert "Call the bare model and wrap it in nothing" in str(error.value)
    assert "also on what Accelerate's prepare() returns" in str(error.value)


@pytest.mark.usefixtures("group")
def test_a_ddp_that_is_gone_is_no_trouble() -> None:
    model = mlp()
    wrapped: Any = DistributedDataParallel(model)
    wrapped.itself = [wrapped]  # a cycle, which only the collector ends
    del wrapped
    with thinwire.attach(model, sgd_of(model)) as sync:
        loss_of(model, 0, 0).backward()
        assert sync.step == 1
    gc.collect()


@pytest.mark.usefixtures("group")
def test_a_model_with_a_wrapper_inside_is_refused() -> None:
    model = nn.Sequential(DistributedDataParallel(mlp()))
    with pytest.raises(AttachError, match="the model's '0' is wrapped in DistributedDataParallel"):
        thinwire.attach(model, sgd_of(model))


@pytest.mark.usefixtures("group")
def test_fsdp_without_replicas_is_refused() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    mesh = init_device_mesh("cpu", (1,))
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # that a world of 1 has nothing to shard, and that FSDP1 is the old one
        one = FullyShardedDataParallel(mlp(), device_mesh=mesh, device_id=torch.device("cpu"))
    with pytest.raises(
        AttachError, match=r"wrapped in FullyShardedDataParallel \(FSDP1\)"
    ) as error:
        thinwire.attach(one, sgd_of(one))
    assert len(str(error.value).splitlines()) == 2
    two = mlp()
    fully_shard(two, mesh=mesh)
    with pytest.raises(AttachError, match="none is 'replicate', over which there would be"):
        thinwire.attach(two, sgd_of(two))


@pytest.mark.parametrize("strategy", [LOCAL, Strategy()], ids=lambda each: type(each.on).__name__)
@pytest.mark.parametrize("optimizer_of", ["attach", "the sharded model"])
@pytest.mark.usefixtures("group")
def test_fully_shard_after_attach_is_found_at_the_first_step_and_by_check(
    strategy: Strategy, optimizer_of: str
) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = mlp()
    optimizer = sgd_of(model)
    sync = thinwire.attach(model, optimizer, strategy)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    if optimizer_of != "attach":
        optimizer = sgd_of(model)
    model(torch.zeros(1, 24)).sum().backward()
    with pytest.raises(
        AttachError,
        match=r"'0\.weight'( and 5 more)?: the model was sharded after attach, so nothing",
    ):
        optimizer.step()
    with pytest.raises(AttachError, match="sharded after attach"):
        sync.check()
    sync.close()


class Accelerated(torch.optim.Optimizer):
    """The seam of `accelerate.optimizer.AcceleratedOptimizer` 1.2: it never calls its parent's
    `__init__`."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, every: int = 1, scaler: Any = None
    ) -> None:
        self.optimizer, self.scaler, self._every, self._asked = optimizer, scaler, every, 0

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.optimizer.state

    def zero_grad(self, set_to_none: bool = True) -> None:
        if self._asked % self._every == 0:
            self.optimizer.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self._asked += 1
        if self._asked % self._every == 0:
            self.optimizer.step(closure)


@pytest.mark.parametrize("overlap", ["backward", "forward"])
def test_an_accelerated_optimiser_is_the_one_inside(overlap: Any) -> None:
    weights = []
    for wrapping in (Accelerated, lambda optimizer: optimizer):
        model = mlp()
        optimizer = wrapping(sgd_of(model))
        with thinwire.attach(model, optimizer, overlap=overlap) as sync:
            train(
                model, optimizer, 0, range(3)
            ) if overlap == "backward" else _train_without_clipping(model, optimizer)
            assert sync.step == 3
        weights.append(weights_of(model))
    assert torch.equal(*weights)


def _train_without_clipping(model: nn.Module, optimizer: Any) -> None:
    for step in range(3):
        loss_of(model, step, 0).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_an_accelerated_optimiser_counts_the_steps_that_it_takes() -> None:
    model = mlp()
    optimizer = Accelerated(sgd_of(model), every=2)
    with thinwire.attach(model, optimizer, LOCAL) as sync:
        train(model, optimizer, 0, range(8))
        assert sync.step == 4


def test_what_cannot_be_an_optimiser_is_refused() -> None:
    model = mlp()
    with pytest.raises(AttachError, match="the optimiser is a int, which takes no hooks"):
        thinwire.attach(model, 3)  # type: ignore[arg-type]
    with pytest.raises(AttachError, match="is of another model"):
        thinwire.attach(model, Accelerated(sgd_of(mlp())))
    with pytest.raises(AttachError, match="has a GradScaler of its own: give it to attach"):
        thinwire.attach(model, Accelerated(sgd_of(model), scaler=torch.amp.GradScaler("cpu")))


@pytest.mark.parametrize("attached", ["plain", "compiled"])
def test_a_compiled_model_still_trains(attached: str) -> None:
    model = mlp()
    compiled = torch.compile(model, backend="eager")
    held = model if attached == "plain" else compiled
    optimizer = sgd_of(held)
    with thinwire.attach(held, optimizer, LOCAL) as sync:
        for step in range(4):
            loss_of(compiled, step, 0).backward()
            optimizer.step()
            optimizer.zero_grad()
        sync.check()
        assert sync.step == 4


# -- what a codec saves
# -----------------------------------------------------------------------------------------------


class Adapters(nn.Module):
    """LoRA's shape: frozen matrices, and thin pairs that train."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.frozen = nn.Linear(512, 512).requires_grad_(False)
        self.pairs = nn.ModuleList(
            nn.ModuleList([nn.Linear(512, rank, bias=False), nn.Linear(rank, 512, bias=False)])
            for _ in range(8)
        )


@pytest.mark.parametrize("strategy", [recipes.powersgd(rank=4), recipes.powersgd(rank=8)], ids=repr)
def test_a_lossy_codec_that_saves_nothing_on_adapters_is_told(strategy: Strategy) -> None:
    def work(driver: Driver) -> None:
        model = Adapters(rank=4)
        optimizer = torch.optim.SGD(
            [param for param in model.parameters() if param.requires_grad], 0.1
        )
        thinwire.attach(model, optimizer, strategy, driver=driver).close()

    with pytest.warns(
        UserWarning,
        match="fewer bytes on this model than exact values: 16 of 16 parameters gain nothing",
    ) as found:
        assert ranks(2, work) == [None, None]
    assert len(found) == 1
    assert "of shape (4, 512)" in str(found[0].message) or "of shape (512, 4)" in str(
        found[0].message
    )
