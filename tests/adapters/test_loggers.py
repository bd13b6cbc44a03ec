"""What loggers write has the names of metrics, read back from their files: Weights & Biases,
TensorBoard, MLflow and CSV, from the Trainers of Hugging Face and Lightning.

Hugging Face's Trainer itself puts `train/` before all names for Weights & Biases and TensorBoard,
such as `train/loss`, and nothing for MLflow.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

from tests.ranks import run_ranks
from thinwire import recipes

for package, extra in {"accelerate": "hf", "lightning": "lightning"}.items():
    pytest.importorskip(package, reason=f"pip install 'thinwire[{extra}]'")
for package in ("wandb", "mlflow", "tensorboard"):
    pytest.importorskip(package, reason="pip install 'thinwire[dev,train]'")
pytestmark = pytest.mark.long

NAMES = {
    "thinwire/exposed_seconds",
    "thinwire/sent_megabytes",
    "thinwire/skipped_steps",
    "thinwire/times_fewer_bytes",
}


def offline(folder: Path) -> None:
    """Keep all of them in a folder, and off the network."""
    warnings.simplefilter("ignore")  # of theirs
    os.environ |= {
        "TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard"),
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(folder),
        "WANDB_CACHE_DIR": str(folder / "cache"),
        "WANDB_CONFIG_DIR": str(folder / "config"),
        "WANDB_DATA_DIR": str(folder / "data"),
        "WANDB_SILENT": "true",
        "MLFLOW_TRACKING_URI": f"file:{folder / 'mlruns'}",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "HOME": str(folder),
    }


def in_tensorboard(folder: Path) -> set[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    names: set[str] = set()
    for path in folder.rglob("events.out.tfevents.*"):
        read = EventAccumulator(str(path))
        read.Reload()
        names.update(read.Tags()["scalars"])
    return names


def in_wandb(folder: Path) -> set[str]:
    """From the log of an offline run: 7 bytes, then records in LevelDB's framing, each with 4 bytes
    of a checksum, 2 of its length and 1 that says it is whole. Wandb itself has no reader."""
    from wandb.proto.wandb_internal_pb2 import Record

    names = set()
    for path in folder.rglob("*.wandb"):
        data, at = path.read_bytes(), 7
        assert len(data) < 1 << 15, "one block, in which no record is cut"
        while at < len(data):
            length = int.from_bytes(data[at + 4 : at + 6], "little")
            assert data[at + 6] == 1
            record = Record()
            record.ParseFromString(data[at + 7 : at + 7 + length])
            names.update(item.key or "/".join(item.nested_key) for item in record.history.item)
            at += 7 + length
    return names


def in_mlflow(folder: Path) -> set[str]:
    """A file a metric, in folders by its name."""
    roots = [path for path in folder.rglob("metrics") if path.is_dir()]
    return {
        str(file.relative_to(root)) for root in roots for file in root.rglob("*") if file.is_file()
    }


def in_csv(folder: Path) -> set[str]:
    (path,) = folder.rglob("metrics.csv")
    return set(path.read_text(encoding="utf-8").splitlines()[0].split(","))


def ours(names: set[str]) -> set[str]:
    return {name for name in names if "thinwire/" in name}


def _trainer(rank: int, folder: Path) -> None:
    from tests.adapters import test_hf as hf
    from thinwire.adapters.hf import Thinwire

    hf.environment(rank)
    offline(folder)
    trainer = hf.trainer_of(
        folder / "out",
        Thinwire(recipes.powersgd(rank=1)),
        max_steps=3,
        report_to=["tensorboard", "wandb", "mlflow"],
    )
    trainer.train()
    _end()


def _lightning(rank: int, folder: Path) -> None:
    offline(folder)
    from lightning.pytorch.loggers import (
        CSVLogger,
        MLFlowLogger,
        TensorBoardLogger,
        WandbLogger,
    )

    from tests.adapters import test_lightning as lightning
    from thinwire.adapters.lightning import Thinwire

    loggers = [
        TensorBoardLogger(folder / "tensorboard"),
        WandbLogger(save_dir=folder, offline=True),
        MLFlowLogger(tracking_uri=os.environ["MLFLOW_TRACKING_URI"]),
        CSVLogger(folder / "csv"),
    ]
    thin = Thinwire(recipes.powersgd(rank=1))
    lightning.fit(rank, folder, [thin], max_steps=3, logger=loggers, log_every_n_steps=1)
    _end()


def _end() -> None:
    import mlflow
    import wandb

    wandb.finish()
    if mlflow.active_run() is not None:
        mlflow.end_run()


def test_the_trainer_of_hugging_face_writes_them_everywhere(tmp_path: Path) -> None:
    run_ranks(2, _trainer, tmp_path, timeout=240)
    assert ours(in_mlflow(tmp_path / "mlruns")) == NAMES
    prefixed = {f"train/{name}" for name in NAMES}
    assert ours(in_tensorboard(tmp_path / "tensorboard")) == prefixed
    assert ours(in_wandb(tmp_path)) == prefixed
    assert "train/loss" in in_wandb(tmp_path), "as it does with its own"


def test_lightning_writes_them_everywhere(tmp_path: Path) -> None:
    run_ranks(2, _lightning, tmp_path, timeout=240)
    written = {
        "TensorBoard": in_tensorboard(tmp_path / "tensorboard"),
        "Weights & Biases": in_wandb(tmp_path),
        "MLflow": in_mlflow(tmp_path / "mlruns"),
        "CSV": in_csv(tmp_path / "csv"),
    }
    assert {logger: ours(names) for logger, names in written.items()} == dict.fromkeys(
        written, NAMES
    )
