"""Put a strategy to work in Hugging Face's Trainer, by a callback."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.state_dict_saver import save

from thinwire.adapters.metrics import metrics_of
from thinwire.adapters.wrapped import CommonWeights, attach_prepared, close_with_common_weights
from thinwire.engine.syncer import Syncer
from thinwire.errors import AttachError, CheckpointError
from thinwire.strategy import Strategy

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise AttachError(
        "thinwire.adapters.hf needs transformers and accelerate: pip install 'thinwire[hf]'"
    ) from error

FOLDER = "thinwire"
"""What a checkpoint's folder calls the strategy's state."""


class Thinwire(TrainerCallback):
    """A callback of `transformers.Trainer` that carries out a strategy.

    It attaches when training begins, inside the DDP that the Trainer has made. It saves the
    strategy's state in the Trainer's checkpoints and goes on from there; it validates and saves the
    weights that ranks have in common; and it adds its metrics to what the Trainer logs.

    Args:
        strategy: when × what × how × on; `None` is plain data parallelism.
        resume_from: the checkpoint folder that `train(resume_from_checkpoint=…)` gets, where that
            lies elsewhere than in `output_dir`.
        options: as of `thinwire.ddp_hook`, such as `lanes`, `timeout` or `nonfinite`.

    Raises:
        AttachError: when training begins: the Trainer averages otherwise than by DDP (FSDP,
            DeepSpeed), or what `ddp_hook` refuses.
        CheckpointError: a run goes on from a checkpoint that holds no state of a strategy.

    Example:
        >>> from thinwire import recipes
        >>> callback = Thinwire(recipes.powersgd(rank=4))
        >>> # trainer = transformers.Trainer(model, args, train_dataset=rows, callbacks=[callback])
        >>> callback.sync is None  # until training begins
        True
    """

    def __init__(
        self,
        strategy: Strategy | None = None,
        *,
        resume_from: str | Path | None = None,
        **options: Any,
    ) -> None:
        self.strategy, self._resume_from, self._options = strategy, resume_from, options
        self.sync: Syncer | None = None
        """The syncer, from the beginning of training to its end."""
        self._common = CommonWeights()

    # -- the Trainer's events

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _go_first(self)
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        scaler = getattr(optimizer, "scaler", None)
        options = {"scaler": scaler, **self._options}
        self.sync = attach_prepared(
            model, optimizer, self.strategy, framework="the Trainer", **options
        )
        if state.global_step:
            self._load(Path(self._resume_from or _folder(args, state)))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._show_before(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._show_before(control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not control.should_save:
            self._common.hide()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # 1. Where the Trainer decides to save after it has evaluated, own weights were saved.
        folder = _folder(args, state)
        if not self._common.shown:
            self._common.show(self.sync)
            if self._common.shown and args.should_save:
                kwargs["model"].save_pretrained(folder)
        self._common.hide()
        # 2. The strategy's state, of every rank.
        if self.sync is not None and not args.save_only_model:
            save({"sync": self.sync}, checkpoint_id=folder / FOLDER)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs = kwargs.get("logs")
        if logs is None or self.sync is None:
            return
        metrics = metrics_of(self.sync)
        logs.update(metrics)  # for the callbacks after this one
        if state.log_history:  # a copy of what is logged, made before
            state.log_history[-1].update(metrics)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the model with the weights that ranks have in common, and close."""
        self._common.hide()
        if self.sync is None:
            return
        best = args.load_best_model_at_end and state.best_model_checkpoint is not None
        close_with_common_weights(self.sync, keep=best)

    # -- common weights, and state

    def _show_before(self, control: Any) -> None:
        """Show the weights that ranks have in common where the Trainer validates or saves next."""
        if control.should_evaluate or control.should_save:
            self._common.show(self.sync)

    def _load(self, folder: Path) -> None:
        assert self.sync is not None
        if not (folder / FOLDER).is_dir():
            raise CheckpointError(
                f"the run goes on from a checkpoint, and {str(folder / FOLDER)!r} holds no state "
                "of a strategy: residuals and anchors would begin anew. Where the checkpoint lies "
                "elsewhere, name it: Thinwire(strategy, resume_from=…)"
            )
        self.sync.load_checkpoint(folder / FOLDER)


def _folder(args: Any, state: Any) -> Path:
    """Return the folder of the Trainer's checkpoint of this step."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _go_first(callback: TrainerCallback) -> None:
    """Put a callback before all others of its Trainer, as these write what is logged to their
    files: what it adds later would be in none.

    The Trainer gives callbacks no way to their list, so it is looked for.
    """
    for holder in gc.get_referrers(callback):
        if isinstance(holder, list) and all(isinstance(each, TrainerCallback) for each in holder):
            holder.remove(callback)
            holder.insert(0, callback)
