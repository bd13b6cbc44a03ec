"""A strategy in Lightning's Trainer: dense it is Lightning's own DDP to the bit, it trains as
`attach` does, and it goes on from Lightning's checkpoints."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import thinwire
from tests.engine.models import batch, mlp, weights_of
from tests.ranks import run_ranks
from thinwire import Strategy
from thinwire.errors import CheckpointError
from thinwire.how import two_shot
from thinwire.on import deltas
from thinwire.what import feedback, uniform
from thinwire.when import every

pytest.importorskip("lightning", reason="pip install 'thinwire[lightning]'")
pytestmark = pytest.mark.long  # Lightning takes seconds to load

FOUR_BITS = Strategy(what=feedback(uniform(bits=4)), how=two_shot())
LOCAL = Strategy(every(3), on=deltas())
STEPS, WORLD = 12, 2


def fit(
    rank: int,
    folder: Path,
    callbacks: list[Any],
    passes: int = 1,
    resume: str | None = None,
    **more: Any,
) -> Any:
    """Train with Lightning on this rank of the group that is there; return the Trainer."""
    warnings.simplefilter("ignore")  # of Lightning's: few workers, no validation loader, …
    import lightning
    from lightning.pytorch.plugins.environments import LightningEnvironment

    class Here(LightningEnvironment):
        """The group of the test."""

        creates_processes_externally = True

        def world_size(self) -> int:
            return dist.get_world_size()

        def global_rank(self) -> int:
            return rank

        def local_rank(self) -> int:
            return rank

        def set_world_size(self, size: int) -> None: ...

        def set_global_rank(self, rank: int) -> None: ...

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.losses = mlp(), []

        def training_step(self, _: Tensor, number: int) -> Tensor:
            # by the step, as Lightning's loader begins again where a run goes on
            x, y = batch(self.trainer.global_step * passes + number % passes, rank)
            loss = nn.functional.cross_entropy(self.net(x), y)
            self.losses.append(float(loss.detach()))
            return loss

        def validation_step(self, rows: Tensor, _: int) -> None:
            self.validated = weights_of(self.net)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    steps = more.get("max_steps", STEPS)
    loader = torch.utils.data.DataLoader(torch.arange(steps * passes), batch_size=1)
    check = torch.utils.data.DataLoader(torch.arange(1), batch_size=1)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=dist.get_world_size(),
        strategy="ddp",
        plugins=[Here()],
        accumulate_grad_batches=passes,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=callbacks,
        **({"enable_checkpointing": False, "max_steps": STEPS, "logger": False} | more),
    )
    module = Module()
    trainer.fit(module, loader, check, ckpt_path=resume, weights_only=False)
    return trainer


def by_hand(rank: int, strategy: Strategy, passes: int) -> tuple[Tensor, list[float]]:
    """The same run in a loop of one's own, with `attach`."""
    model, seen = mlp(), []
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(model, optimizer, strategy, check_every=None) as sync:
        for step in range(STEPS):
            total = torch.zeros(())
            for k in range(passes):
                x, y = batch(step * passes + k, rank)
                loss = nn.functional.cross_entropy(model(x), y)
                seen.append(float(loss.detach()))
                total = total + loss / passes
            total.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        with sync.common_weights():
            return weights_of(model), seen


def _trained(rank: int, folder: Path) -> dict[str, Any]:
    from thinwire.adapters.lightning import Thinwire

    seen: dict[str, Any] = {}
    for passes in (1, 2):
        plain = fit(rank, folder, [], passes).lightning_module
        dense = fit(rank, folder, [Thinwire(check_every=1)], passes).lightning_module
        seen[f"dense, {passes}"] = (
            torch.equal(weights_of(plain), weights_of(dense)),
            plain.losses == dense.losses,
        )
        for name, strategy in {"4 bits": FOUR_BITS, "local": LOCAL}.items():
            trainer = fit(rank, folder, [Thinwire(strategy)], passes)
            module = trainer.lightning_module
            hand, losses = by_hand(rank, strategy, passes)
            mine = weights_of(module)
            seen[f"{name}, {passes}"] = float((mine - hand).norm() / hand.norm())
            seen[f"{name}, {passes}, losses"] = max(
                abs(a - b) for a, b in zip(module.losses, losses, strict=True)
            )
            seen[f"{name}, {passes}, weights"] = mine
            seen[f"{name}, {passes}, validated"] = module.validated
    return seen


def test_it_trains_as_lightning_and_as_attach(tmp_path: Path) -> None:
    by_rank = run_ranks(WORLD, _trained, tmp_path, timeout=240)
    for seen in by_rank:
        for passes in (1, 2):
            assert seen[f"dense, {passes}"] == (True, True)
            for name in ("4 bits", "local"):
                # DDP's first pass has another bucket layout, and so other blocks
                assert seen[f"{name}, {passes}"] < (0.01 if name == "4 bits" else 1e-5)
                assert seen[f"{name}, {passes}, losses"] < (0.02 if name == "4 bits" else 1e-5)
                for what in ("weights", "validated"):
                    key = f"{name}, {passes}, {what}"
                    assert torch.equal(seen[key], by_rank[0][key]), "ranks have them in common"


def _resumed(rank: int, folder: Path) -> dict[str, float]:
    from lightning.pytorch.callbacks import ModelCheckpoint

    from thinwire.adapters.lightning import Thinwire

    seen = {}
    for name, strategy in {"4 bits": FOUR_BITS, "local": LOCAL, "plain": None}.items():
        saves = ModelCheckpoint(folder / name, every_n_train_steps=5, save_top_k=-1)
        ours = [] if strategy is None else [Thinwire(strategy)]
        trainer = fit(rank, folder, [*ours, saves], enable_checkpointing=True)
        if strategy is None:
            continue
        file = next((folder / name).glob("*step=5.ckpt"))
        again = fit(rank, folder, [Thinwire(strategy)], resume=str(file))
        one, other = (weights_of(each.lightning_module) for each in (trainer, again))
        seen[name] = float((one - other).norm() / one.norm())
    file = next((folder / "plain").glob("*step=5.ckpt"))
    with pytest.raises(CheckpointError, match="holds no state of a strategy"):
        fit(rank, folder, [Thinwire(FOUR_BITS)], resume=str(file))
    return seen


def test_it_goes_on_from_lightnings_checkpoint(tmp_path: Path) -> None:
    for seen in run_ranks(WORLD, _resumed, tmp_path, timeout=240):
        assert seen["local"] == 0
        # a new DDP has another bucket layout in its first pass, and so other blocks of 256 values
        assert seen["4 bits"] < 0.01


def _dense(rank: int, folder: Path) -> bool:
    from thinwire.adapters.lightning import Thinwire

    plain, ours = (fit(rank, folder, each) for each in ([], [Thinwire(check_every=1)]))
    return torch.equal(weights_of(plain.lightning_module), weights_of(ours.lightning_module))


def test_on_three_ranks_dense_is_lightnings_own(tmp_path: Path) -> None:
    assert run_ranks(3, _dense, tmp_path, timeout=240) == [True] * 3
