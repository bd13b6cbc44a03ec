"""The table of docs/frameworks: every cell is run, or refused for the reason it gives."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import thinwire
from tests import rays, shards
from tests.ddp import wrapped
from tests.engine.models import loss_of, mlp, weights_of
from tests.members import ROOT
from tests.ranks import run_ranks
from thinwire import Strategy, recipes
from thinwire.engine.syncer import Syncer
from thinwire.errors import NotLandedError
from thinwire.how import gather, two_shot
from thinwire.on import deltas, gradients, parameters
from thinwire.what import feedback, topk, uniform
from thinwire.when import delayed, every

pytestmark = pytest.mark.long

STEPS, PASSES = 50, 2
STRATEGIES = {
    "dense gradients": Strategy(),
    "4 bits with feedback": Strategy(what=feedback(uniform(4)), how=two_shot()),
    "top-k with feedback": Strategy(what=feedback(topk(32, 512)), how=gather()),
    "PowerSGD": recipes.powersgd(rank=1),
    "delayed gradients": Strategy(delayed(1, every(1))),
    "accumulation by `every(2)`": Strategy(every(2)),
    "deltas (DiLoCo)": Strategy(every(5), on=deltas()),
    "deltas by parts (streaming)": recipes.streaming_diloco(period=4, fragments=2, tau=1),
    "parameters": Strategy(every(5), on=parameters()),
    "signs for a plain SGD": Strategy(on=gradients(then="sign")),
}


def table() -> dict[str, list[str]]:
    """The cells of the page, by strategy."""
    text = (ROOT / "docs" / "frameworks" / "index.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in rows[1:]}


def in_ddp(rank: int, strategy: Strategy) -> Tensor:
    ddp, _ = wrapped()
    optimizer = torch.optim.SGD(ddp.parameters(), 0.01)
    return loop(rank, ddp, optimizer, thinwire.ddp_hook(ddp, strategy, optimizer=optimizer))


def in_ray() -> dict[str, Tensor]:
    """All rows, on a worker of Ray Train, which is slow to start."""
    import ray.train.torch

    from thinwire.adapters.ray import attach, report

    rank, made = ray.train.get_context().get_world_rank(), {}
    for name, strategy in STRATEGIES.items():
        ddp = ray.train.torch.prepare_model(mlp())
        optimizer = torch.optim.SGD(ddp.parameters(), 0.01)
        sync = attach(ddp, optimizer, strategy)
        made[name] = loop(rank, ddp, optimizer, sync)
        report(sync, {"row": name})
    return made


def loop(rank: int, ddp: nn.Module, optimizer: torch.optim.Optimizer, sync: Syncer) -> Tensor:
    """A loop of one's own over a DDP module; return the weights that ranks have in common."""
    strategy = sync.strategy
    by_schedule = strategy.when.period == PASSES and sync.session.on_gradients
    for step in range(STEPS):
        for micro in range(PASSES):
            quiet = micro < PASSES - 1 and not by_schedule
            with ddp.no_sync() if quiet else nullcontext():
                loss_of(ddp, step * PASSES + micro, rank).backward()
        nn.utils.clip_grad_norm_(ddp.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    with sync.common_weights():
        shown = weights_of(ddp)
    sync.close()
    return shown


def in_trainer(rank: int, strategy: Strategy, folder: Path) -> Tensor:
    from tests.adapters import test_hf as hf  # here, as Ray's workers import this module too
    from thinwire.adapters.hf import Thinwire

    hf.environment(rank)
    trainer = hf.trainer_of(
        folder,
        Thinwire(strategy),
        max_steps=STEPS,
        gradient_accumulation_steps=PASSES,
        learning_rate=0.01,
    )
    trainer.train()
    return weights_of(trainer.model)


def in_lightning(rank: int, strategy: Strategy, folder: Path) -> Tensor:
    from tests.adapters import test_lightning as lightning
    from thinwire.adapters.lightning import Thinwire

    trainer = lightning.fit(rank, folder, [Thinwire(strategy)], PASSES, max_steps=STEPS)
    return weights_of(trainer.lightning_module)


def over_shards(rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    """All rows, on two replicas of two shards: this rank's shards, and the whole model's steps."""
    made = {}
    for name, strategy in STRATEGIES.items():
        model = shards.sharded(shards.mesh_of(2, 2)["shard"])
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        sync = thinwire.attach(model, optimizer, strategy, bucket_bytes=shards.BYTES)
        begun = shards.shards_of(model)
        by_schedule = strategy.when.period == PASSES and sync.session.on_gradients
        for step in range(STEPS):
            for micro in range(PASSES):
                model.set_requires_gradient_sync(by_schedule or micro == PASSES - 1)
                shards.loss_of(model, step * PASSES + micro, rank).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        with sync.common_weights():
            made[name] = shards.shards_of(model), begun
        sync.close()
    return made


def _row(rank: int, strategy: Strategy, folder: Path) -> list[Any]:
    """What each framework makes of a strategy: weights, or the error."""
    made: list[Any] = []
    for run in (
        lambda: in_ddp(rank, strategy),
        lambda: in_trainer(rank, strategy, folder),
        lambda: in_lightning(rank, strategy, folder),
    ):
        try:
            made.append(run())
        except NotLandedError as error:
            made.append(str(error))
    return made


def test_every_strategy_has_a_row() -> None:
    assert list(table()) == list(STRATEGIES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_row_is_what_happens(name: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="pip install 'thinwire[hf]'")
    pytest.importorskip("lightning", reason="pip install 'thinwire[lightning]'")
    first, second = run_ranks(2, _row, STRATEGIES[name], tmp_path, timeout=240)
    for cell, one, other in zip(table()[name][: len(first)], first, second, strict=True):
        if cell == "works":
            assert isinstance(one, Tensor), one
            assert bool(one.isfinite().all())
            assert torch.equal(one, other)
        else:
            assert cell == "refused: it steps in between"
            assert "no mean has landed" in one


@pytest.mark.timeout(700)
def test_the_column_of_ray_is_what_happens(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="pip install 'thinwire[ray]'")
    first, second = rays.fit(tmp_path, in_ray).results
    for name, cells in table().items():
        assert cells[3] == "works"
        assert bool(first[name].isfinite().all())
        assert torch.equal(first[name], second[name]), name


@pytest.mark.timeout(700)
@pytest.mark.filterwarnings("ignore:.*looks at whole parameters")
def test_the_column_of_fsdp2_is_what_happens() -> None:
    made = run_ranks(4, over_shards, timeout=400)
    for name, cells in table().items():
        assert cells[4] == "works"
        for one, other in ((0, 2), (1, 3)):  # the same shard of both replicas
            ended, begun = made[one][name]
            assert bool(ended.isfinite().all())
            assert torch.equal(ended, made[other][name][0]), name
            assert not torch.equal(ended, begun), name
