"""Put a strategy to work in Ray Train, inside the function that its workers run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from thinwire.adapters.metrics import metrics_of
from thinwire.adapters.wrapped import attach_prepared
from thinwire.engine.syncer import Syncer
from thinwire.errors import AttachError, CheckpointError
from thinwire.strategy import Strategy

try:
    import ray.train
except ImportError as error:
    raise AttachError(
        "thinwire.adapters.ray needs Ray Train: pip install 'thinwire[ray]'"
    ) from error

FOLDER = "thinwire"
"""What a checkpoint calls the strategy's state."""


def attach(
    model: nn.Module,
    optimizer: Optimizer,
    strategy: Strategy | None = None,
    *,
    resume_from: ray.train.Checkpoint | Literal["latest"] | None = "latest",
    **options: Any,
) -> Syncer:
    """Put a strategy to work on a model of `ray.train.torch.prepare_model`, and go on from a
    checkpoint where there is one. Every worker calls it alike.

    Load the model and the optimiser from the checkpoint before: the strategy's state comes last, as
    it has what is each worker's own.

    Args:
        model: the prepared model: in DDP on several workers, bare on one.
        strategy: when × what × how × on; `None` is plain data parallelism.
        resume_from: the checkpoint to go on from. "latest" is that of `ray.train.get_checkpoint()`,
            if any; `None` begins anew.
        options: as of `thinwire.ddp_hook`, such as `lanes`, `timeout` or `nonfinite`.

    Returns:
        The syncer, which `report` and `checkpoint` take.

    Raises:
        AttachError: the model is on several workers without DDP, or what `ddp_hook` refuses.
        CheckpointError: the checkpoint holds no state of a strategy, or that of another.

    Example:
        >>> def train_loop_per_worker(config):
        ...     model = ray.train.torch.prepare_model(nn.Linear(4, 2))
        ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ...     with attach(model, optimizer, recipes.powersgd(rank=1)) as sync:
        ...         ...  # your loop
        ...         with checkpoint(sync, {"loss": 0.5}) as folder:
        ...             if ray.train.get_context().get_world_rank() == 0:
        ...                 torch.save(model.state_dict(), folder / "model.pt")
    """
    if resume_from == "latest":
        resume_from = ray.train.get_checkpoint()
    sync = attach_prepared(model, optimizer, strategy, framework="Ray Train", **options)
    if resume_from is not None:
        try:
            _load(sync, resume_from)
        except BaseException:
            sync.close()
            raise
    return sync


def report(sync: Syncer, metrics: Mapping[str, Any]) -> None:
    """Report metrics to Ray Train without a checkpoint, those of the strategy among them. Every
    worker calls it alike.

    Args:
        metrics: your own, by name.
    """
    ray.train.report({**metrics, **metrics_of(sync)})


@contextmanager
def checkpoint(sync: Syncer, metrics: Mapping[str, Any], **options: Any) -> Iterator[Path]:
    """Report metrics with a checkpoint, which holds what you write into the folder and the state of
    the strategy. Every worker calls it alike, after a step of its optimiser.

    In the block the model holds the weights that workers have in common. Each worker has a folder
    of its own, and Ray puts all of them together: what all have alike one of them writes.

    Args:
        metrics: your own, by name; those of the strategy are added.
        options: as of `ray.train.report`, such as `checkpoint_upload_mode`.

    Yields:
        This worker's folder; it goes when Ray has stored it.
    """
    stored = _stores()
    folder = Path(tempfile.mkdtemp(prefix="thinwire-"))
    keep_folder = False
    try:
        # 1. What the user writes, then the state of every worker: each writes a file of its own.
        with sync.common_weights():
            yield folder
        save({"sync": sync}, checkpoint_id=folder / FOLDER)
        # 2. Ray stores it: now, or later from a thread, which then takes the folder away itself.
        #    In local mode the folder is itself the checkpoint of the result.
        ray.train.report(
            {**metrics, **metrics_of(sync)},
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            **options,
        )
        mode = options.get("checkpoint_upload_mode")
        later = mode is not None and mode.default_delete_local_checkpoint_after_upload()
        keep_folder = later or not stored
    finally:
        if not keep_folder:
            shutil.rmtree(folder, ignore_errors=True)


def _stores() -> bool:
    """Return whether Ray stores checkpoints; in its local mode it keeps the folder as it is."""
    try:
        ray.train.get_context().get_storage()
    except NotImplementedError:
        if ray.train.get_context().get_world_size() > 1:
            raise CheckpointError(
                "Ray Train's local mode (num_workers=0) puts no workers' folders together, so no "
                "checkpoint would hold the state of all: let Ray start the workers, by num_workers="
            ) from None
        return False
    return True


def _load(sync: Syncer, checkpoint: ray.train.Checkpoint) -> None:
    with checkpoint.as_directory() as folder:
        state = Path(folder, FOLDER)
        if not state.is_dir():
            raise CheckpointError(
                f"the run goes on from {checkpoint.path!r}, which holds no state of a strategy: "
                "residuals and anchors would begin anew. Report with "
                "thinwire.adapters.ray.checkpoint(sync, metrics)"
            )
        sync.load_checkpoint(state)
