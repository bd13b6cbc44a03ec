"""Put a strategy to work in Lightning's Trainer, by a callback."""

from __future__ import annotations

from typing import Any

from thinwire.adapters.metrics import metrics_of
from thinwire.adapters.wrapped import (
    CommonWeights,
    attach_prepared,
    close_with_common_weights,
    states_of_ranks,
)
from thinwire.engine.syncer import Syncer
from thinwire.errors import AttachError, CheckpointError
from thinwire.strategy import Strategy

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback  # type: ignore[assignment]
    except ImportError as error:
        raise AttachError(
            "thinwire.adapters.lightning needs Lightning: pip install 'thinwire[lightning]'"
        ) from error

KEY = "thinwire"
"""What a checkpoint calls the strategy's state."""


class Thinwire(Callback):
    """A callback of `lightning.Trainer` that carries out a strategy.

    It attaches when training begins, inside the DDP that the Trainer has made (`strategy="ddp"`).
    It saves the state of every rank in the Trainer's checkpoints and goes on from there; it
    validates and saves the weights that ranks have in common; and it logs its metrics.

    Args:
        strategy: when × what × how × on; `None` is plain data parallelism.
        options: as of `thinwire.ddp_hook`, such as `lanes`, `timeout` or `nonfinite`.

    Raises:
        AttachError: when training begins: the Trainer averages otherwise than by DDP, has several
            optimisers, or what `ddp_hook` refuses.
        CheckpointError: a run goes on from a checkpoint that holds no state of a strategy.

    Example:
        >>> from thinwire import recipes
        >>> callback = Thinwire(recipes.powersgd(rank=4))
        >>> # trainer = lightning.Trainer(strategy="ddp", devices=2, callbacks=[callback])
        >>> callback.sync is None  # until training begins
        True
    """

    def __init__(self, strategy: Strategy | None = None, **options: Any) -> None:
        super().__init__()
        self.strategy, self._options = strategy, options
        self.sync: Syncer | None = None
        """The syncer, from the beginning of training to its end."""
        self._loaded: dict[str, Any] | None = None  # of a checkpoint, until training begins
        self._common = CommonWeights()

    # -- the Trainer's events

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if len(trainer.optimizers) != 1:
            raise AttachError(
                f"the module has {len(trainer.optimizers)} optimisers: Thinwire counts the steps "
                "of one. Join their parameters in one optimiser"
            )
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        options = {"scaler": scaler, **self._options}
        # The wrapper holds the LightningModule, so the names of parameters are the module's own.
        self.sync = attach_prepared(
            trainer.strategy.model,
            trainer.optimizers[0],
            self.strategy,
            framework="Lightning",
            **options,
        )
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            self.sync.load_state_dict(loaded)
        elif trainer.ckpt_path is not None:
            raise CheckpointError(
                f"the run goes on from {str(trainer.ckpt_path)!r}, which holds no state of a "
                "strategy: residuals and anchors would begin anew. It was saved without this "
                "callback"
            )

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.sync is not None and trainer.global_step % trainer.log_every_n_steps == 0:
            pl_module.log_dict(metrics_of(self.sync), rank_zero_only=True)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._common.show(self.sync)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._common.hide()

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if self.sync is None:
            return
        # 1. the weights that ranks have in common, in place of this rank's own
        self._common.hide()
        if not self.sync.session.on_gradients:
            with self.sync.common_weights():
                shown = trainer.strategy.lightning_module_state_dict()
                checkpoint["state_dict"] = {
                    name: value.detach().clone() for name, value in shown.items()
                }
        # 2. the state of every rank, as rank 0 alone writes
        checkpoint[KEY] = states_of_ranks(self.sync)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._loaded = checkpoint.get(KEY)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave the model with the weights that ranks have in common, and close."""
        self._common.hide()
        if self.sync is not None:
            close_with_common_weights(self.sync)
