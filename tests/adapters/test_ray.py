"""A strategy in Ray Train: dense it is Ray's own DDP to the bit, it trains as `attach` does, and it
goes on from Ray's checkpoints."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import thinwire
from tests import rays
from tests.engine.models import loss_of, mlp, weights_of
from thinwire import Strategy
from thinwire.errors import AttachError, CheckpointError
from thinwire.how import two_shot
from thinwire.on import deltas
from thinwire.what import feedback, uniform
from thinwire.when import every

FOUR_BITS = Strategy(what=feedback(uniform(bits=4)), how=two_shot())
LOCAL = Strategy(every(3), on=deltas())
STRATEGIES = {"dense": Strategy(), "4 bits": FOUR_BITS, "local": LOCAL}
STEPS = 12
NAMES = [
    "thinwire/exposed_seconds",
    "thinwire/sent_megabytes",
    "thinwire/skipped_steps",
    "thinwire/times_fewer_bytes",
]


def prepared() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model in its last bucket layout, which DDP makes before its second pass: in another, blocks
    of 256 values are others."""
    import ray.train.torch

    model = ray.train.torch.prepare_model(mlp(bias=False))
    for _ in range(2):
        loss_of(model, 0, 0).backward()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    optimizer.zero_grad()
    return model, optimizer


def steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, which: range, passes: int = 1
) -> list[float]:
    """The user's loop, with clipping; all passes but a step's last are without messages."""
    import ray.train

    rank, seen = ray.train.get_context().get_world_rank(), []
    for step in which:
        for micro in range(passes):
            quiet = micro < passes - 1 and hasattr(model, "no_sync")
            with model.no_sync() if quiet else nullcontext():
                loss = loss_of(model, step * passes + micro, rank)
                (loss / passes).backward()
            seen.append(float(loss.detach()))
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return seen


def by_hand(strategy: Strategy, passes: int) -> Tensor:
    """The same run with `attach` on the bare model: on gradients one backward pass a step."""
    import ray.train

    rank, model = ray.train.get_context().get_world_rank(), mlp(bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with thinwire.attach(model, optimizer, strategy, check_every=None) as sync:
        for step in range(STEPS):
            losses = [loss_of(model, step * passes + k, rank) / passes for k in range(passes)]
            torch.stack(losses).sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        with sync.common_weights():
            return weights_of(model)


def common(sync: Any) -> Tensor:
    with sync.common_weights() as model:
        return weights_of(model)


def write(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """What a user's script writes on rank 0."""
    import ray.train

    if ray.train.get_context().get_world_rank() == 0:
        inner = getattr(model, "module", model)
        both = {"model": inner.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(both, folder / "model.pt")


def read(folder: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    both = torch.load(Path(folder) / "model.pt", weights_only=True)
    getattr(model, "module", model).load_state_dict(both["model"])
    optimizer.load_state_dict(both["optimizer"])


# -- on two workers


def _trained() -> dict[str, Any]:
    """Beside plain DDP and beside `attach`; then from a checkpoint in the middle."""
    import ray.train

    from thinwire.adapters.ray import attach, checkpoint, report

    seen: dict[str, Any] = {}
    # 1. Trained whole, with accumulation and without.
    for passes in (1, 2):
        model, optimizer = prepared()
        losses = steps(model, optimizer, range(STEPS), passes)
        plain = weights_of(model)
        for name, strategy in STRATEGIES.items():
            model, optimizer = prepared()
            with attach(model, optimizer, strategy, resume_from=None) as sync:
                ours = steps(model, optimizer, range(STEPS), passes)
                mine = common(sync)
                report(sync, {"loss": ours[-1]})
            other = plain if name == "dense" else by_hand(strategy, passes)
            seen[f"{name}, {passes}"] = float((mine - other).norm() / other.norm())
            seen[f"{name}, {passes}, weights"] = mine
            if name == "dense":
                seen[f"{name}, {passes}, losses"] = ours == losses
    # 2. From the checkpoint of step 5, which Ray has stored, to where the whole run is.
    for name, strategy in STRATEGIES.items():
        model, optimizer = prepared()
        with attach(model, optimizer, strategy, resume_from=None) as sync:
            steps(model, optimizer, range(5))
            with checkpoint(sync, {"step": 5}) as folder:
                write(folder, model, optimizer)
                shown = weights_of(model)
            seen[f"{name}, folder is gone"] = not folder.exists()
            steps(model, optimizer, range(5, STEPS))
            whole = common(sync)
        model, optimizer = prepared()
        with ray.train.get_checkpoint().as_directory() as stored:
            read(stored, model, optimizer)
            seen[f"{name}, saved"] = torch.equal(weights_of(model), shown)
        with attach(model, optimizer, strategy) as sync:
            seen[f"{name}, clock"] = sync.step
            steps(model, optimizer, range(5, STEPS))
            seen[f"{name}, resumed"] = float((common(sync) - whole).norm() / whole.norm())
    # 3. What is refused: a model without DDP, and a checkpoint without the strategy's state.
    bare = mlp()
    with pytest.raises(AttachError, match="Ray Train has put nothing that averages"):
        attach(bare, torch.optim.SGD(bare.parameters(), 0.1), FOUR_BITS, resume_from=None)
    stored = ray.train.Checkpoint.from_directory("/nowhere")
    with pytest.raises(CheckpointError, match="holds no state of a strategy"):
        attach(*prepared(), FOUR_BITS, resume_from=stored)
    return seen


@pytest.mark.long
@pytest.mark.timeout(700)
def test_it_trains_as_ddp_and_as_attach_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="pip install 'thinwire[ray]'")
    fitted = rays.fit(tmp_path, _trained)
    for seen in fitted.results:
        for passes in (1, 2):
            assert seen[f"dense, {passes}"] == 0
            assert seen[f"dense, {passes}, losses"]
            assert seen[f"local, {passes}"] < 1e-5
            assert seen[f"4 bits, {passes}"] < 1e-4
            for name in STRATEGIES:
                key = f"{name}, {passes}, weights"
                assert torch.equal(seen[key], fitted.results[0][key]), "workers end alike"
        for name in STRATEGIES:
            assert seen[f"{name}, folder is gone"]
            assert seen[f"{name}, saved"], "the model that is saved has the common weights"
            assert seen[f"{name}, clock"] == 5
            assert seen[f"{name}, resumed"] == 0
    assert sorted(set(fitted.metrics) - {"step"}) == NAMES
    assert fitted.metrics["thinwire/sent_megabytes"] > 0


def _failing(marks: Path) -> tuple[int, Tensor, Tensor]:
    """A worker is lost at step 8; Ray starts all of them again."""
    import ray.train

    from thinwire.adapters.ray import attach, checkpoint

    model, optimizer = prepared()
    stored = ray.train.get_checkpoint()
    if stored is not None:
        with stored.as_directory() as folder:
            read(folder, model, optimizer)
    with attach(model, optimizer, LOCAL) as sync:
        began = sync.step
        for step in range(began, STEPS):
            steps(model, optimizer, range(step, step + 1))
            if step == 4:
                with checkpoint(sync, {"step": step + 1}) as folder:
                    write(folder, model, optimizer)
            if step == 7 and not began and ray.train.get_context().get_world_rank() == 1:
                raise OSError("this worker is lost")
        ended = common(sync)
    model, optimizer = prepared()
    with attach(model, optimizer, LOCAL, resume_from=None) as sync:
        steps(model, optimizer, range(STEPS))
        return began, ended, common(sync)


def _alone(stored: str) -> tuple[int, Tensor, float, str]:
    """One worker, which Ray gives no DDP; then on from a checkpoint that two have saved."""
    import ray.train

    from thinwire.adapters.ray import attach, checkpoint

    model, optimizer = prepared()
    with attach(model, optimizer) as sync:
        steps(model, optimizer, range(STEPS))
        alone, source = weights_of(model), type(sync.source).__name__
    model, optimizer = prepared()
    steps(model, optimizer, range(STEPS))
    difference = float((weights_of(model) - alone).norm() / alone.norm())

    model, optimizer = prepared()
    read(stored, model, optimizer)
    before = weights_of(model)
    taken = ray.train.Checkpoint.from_directory(stored)
    with attach(model, optimizer, LOCAL, resume_from=taken) as sync:
        began = sync.step
        same = torch.equal(before, common(sync))
        steps(model, optimizer, range(began, STEPS))
        mode = ray.train.CheckpointUploadMode.ASYNC  # stored by a thread, after the block
        with checkpoint(sync, {"step": STEPS}, checkpoint_upload_mode=mode) as folder:
            write(folder, model, optimizer)
    return began, torch.tensor(same), difference, source


@pytest.mark.long
@pytest.mark.timeout(700)
def test_workers_that_start_again_go_on_and_so_does_one_alone(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="pip install 'thinwire[ray]'")
    two = rays.fit(tmp_path / "two", _failing, tmp_path, failures=1)
    for began, ended, never in two.results:
        assert began == 5
        assert torch.equal(ended, never)
    assert two.checkpoint is not None
    one = rays.fit(tmp_path / "one", _alone, two.checkpoint, world=1)
    began, same, difference, source = one.results[0]
    assert (began, source) == (5, "GradientHooks")
    assert same, "another number of workers begins with the common weights"
    assert difference == 0
    assert one.metrics["step"] == STEPS
    assert one.checkpoint is not None
    assert {path.name for path in Path(one.checkpoint).iterdir()} == {"model.pt", "thinwire"}


# -- other frameworks on Ray's workers, with callbacks of their own


def _trainer(folder: Path) -> dict[str, Any]:
    """Hugging Face's Trainer: its checkpoint, with the strategy's state, is in Ray's."""
    import ray.train
    from ray.train.huggingface.transformers import RayTrainReportCallback, prepare_trainer

    from tests.adapters import test_hf as hf
    from thinwire.adapters.hf import Thinwire

    saves = {"save_strategy": "steps", "save_steps": 5}
    whole = prepare_trainer(hf.trainer_of(folder / "whole", Thinwire(LOCAL), **saves))
    whole.add_callback(RayTrainReportCallback())
    whole.train()
    with ray.train.get_checkpoint().as_directory() as stored:  # of step 10
        inside = Path(stored, "checkpoint")
        again = hf.trainer_of(folder / "again", Thinwire(LOCAL, resume_from=inside))
        again.train(resume_from_checkpoint=str(inside))
    return {
        "logged": sorted(key for key in whole.state.log_history[-2] if key in NAMES),
        "step": whole.state.global_step,
        "same": torch.equal(weights_of(whole.model), weights_of(again.model)),
        "weights": weights_of(whole.model),
    }


def _lightning(folder: Path) -> dict[str, Any]:
    """Lightning: its checkpoint, with the state of every worker, is in Ray's."""
    import lightning
    import ray.train
    from ray.train.lightning import (
        RayDDPStrategy,
        RayLightningEnvironment,
        RayTrainReportCallback,
        prepare_trainer,
    )

    from thinwire.adapters.lightning import Thinwire

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def training_step(self, number: Tensor, _: int) -> Tensor:
            return loss_of(self.net, self.trainer.global_step, self.global_rank)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    def train(epochs: int, callbacks: list[Any], resume: str | None = None) -> Any:
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices="auto",
            strategy=RayDDPStrategy(),
            plugins=[RayLightningEnvironment()],
            max_epochs=epochs,
            log_every_n_steps=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[Thinwire(LOCAL), *callbacks],
        )
        module = Module()
        rows = torch.utils.data.DataLoader(torch.arange(10), batch_size=1)
        prepare_trainer(trainer).fit(module, rows, ckpt_path=resume, weights_only=False)
        return weights_of(module)

    first = train(1, [RayTrainReportCallback()])
    stored = ray.train.get_checkpoint()
    whole = train(2, [])
    with stored.as_directory() as inside:
        again = train(2, [], str(Path(inside, "checkpoint.ckpt")))
    return {
        "same": torch.equal(whole, again),
        "moved": not torch.equal(first, whole),
        "weights": whole,
    }


def _frameworks(folder: Path) -> dict[str, dict[str, Any]]:
    return {"lightning": _lightning(folder), "trainer": _trainer(folder)}


@pytest.mark.long
@pytest.mark.timeout(700)
def test_callbacks_of_other_frameworks_work_on_rays_workers(tmp_path: Path) -> None:
    for extra in ("ray", "accelerate", "lightning"):
        pytest.importorskip(extra, reason=f"pip install 'thinwire[ray,hf,lightning]': {extra}")
    fitted = rays.fit(tmp_path, _frameworks, tmp_path)
    for seen in fitted.results:
        for name in ("lightning", "trainer"):
            assert seen[name]["same"], "from Ray's checkpoint it goes on with every worker's state"
            assert torch.equal(seen[name]["weights"], fitted.results[0][name]["weights"])
        assert seen["lightning"]["moved"]
        assert seen["trainer"]["logged"] == NAMES
    assert set(NAMES) < set(fitted.metrics), "Ray's callback reports what the Trainer logs"


# -- without workers


@pytest.mark.long  # Ray takes seconds to load
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_in_local_mode_the_folder_is_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="pip install 'thinwire[ray]'")
    import ray.train.torch

    from thinwire.adapters.ray import attach, checkpoint

    def work() -> None:
        model, optimizer = prepared()
        with attach(model, optimizer, LOCAL) as sync:
            steps(model, optimizer, range(3))
            with checkpoint(sync, {"step": 3}) as folder:
                write(folder, model, optimizer)
            # as under torchrun, where nobody would put the folders of ranks together
            context = ray.train.get_context()
            monkeypatch.setattr(context, "world_size", 2)
            with pytest.raises(CheckpointError, match="let Ray start"), checkpoint(sync, {}):
                pass

    here = ray.train.ScalingConfig(num_workers=0)
    result = ray.train.torch.TorchTrainer(work, scaling_config=here).fit()
    folder = Path(result.checkpoint.path)
    try:
        assert {path.name for path in folder.iterdir()} == {"model.pt", "thinwire"}
    finally:
        shutil.rmtree(folder)


def test_a_missing_extra_names_the_command() -> None:
    code = "import sys; sys.modules['ray'] = None; import thinwire.adapters.ray"
    ran = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "AttachError" in ran.stderr
    assert "pip install 'thinwire[ray]'" in ran.stderr
