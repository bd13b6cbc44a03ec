"""Put a strategy to work over the replicate dimension of torchtitan's trainer."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from torch import nn

from thinwire.adapters.metrics import metrics_of
from thinwire.adapters.wrapped import close_with_common_weights
from thinwire.engine.attach import attach
from thinwire.engine.shards import fsdp_modules
from thinwire.engine.syncer import Syncer
from thinwire.errors import AttachError, CheckpointError
from thinwire.planner.machine.frameworks import TRIED, installed
from thinwire.strategy import Strategy

DIM = "dp_replicate"
"""What torchtitan calls the dimension over which there are replicas."""
KEY = "sync"
"""What a checkpoint calls the strategy's state."""
OF_CONFIG = (
    "model_spec.parallelize_fn",
    "parallelism.data_parallel_replicate_degree",
    "parallelism.spmd_backend",
    "parallelism.pipeline_parallel_degree",
    "parallelism.expert_parallel_degree",
    "training.disable_cuda_graphs",
    "validator.enable",
)
OF_TRAINER = (
    "model_parts",
    "optimizers.optimizers",
    "step",
    "close",
    "parallel_dims.get_mesh",
    "metrics_processor.log",
    "checkpointer.load",
    "checkpointer.save",
    "checkpointer.enable",
    "checkpointer._should_save",
)
WHERE_IT_SAVES = ("checkpointer.folder", "checkpointer.initial_load_path", "checkpointer.states")
"""What is read of torchtitan; another version may have moved it."""


class Thinwire:
    """A strategy in place of torchtitan's own all-reduce between replicas.

    The model is sharded over torchtitan's other dimensions, and the strategy joins the replicas. It
    attaches when training begins, after torchtitan has loaded its checkpoint. It saves the state of
    every rank in those checkpoints; it validates and saves the weights that ranks have in common;
    and it adds its metrics to what is logged.

    Args:
        strategy: when × what × how × on; `None` is plain data parallelism.
        options: as of `thinwire.attach`, such as `lanes`, `timeout` or `nonfinite`.

    Raises:
        AttachError: in `build`: torchtitan is not installed, there are no replicas, a part of it
            that no strategy can serve, or a version that has moved what is read of it.
        CheckpointError: a run goes on from a checkpoint that holds no state of a strategy.

    Example:
        >>> from thinwire import recipes
        >>> joined = Thinwire(recipes.diloco(period=32))
        >>> # trainer = joined.build(ConfigManager().parse_args()); trainer.train()
        >>> joined.sync is None  # until training begins
        True
    """

    def __init__(self, strategy: Strategy | None = None, **options: Any) -> None:
        self.strategy, self._options = strategy, options
        self.sync: Syncer | None = None
        """The syncer, from the beginning of training to `trainer.close()`."""

    def build(self, config: Any) -> Any:
        """Build the trainer of a configuration, in place of `config.build()`."""
        # 1. refuse, before anything is built
        version, tried = installed("torchtitan"), TRIED["torchtitan"][0]
        if version is None:
            raise AttachError(
                "thinwire.adapters.torchtitan needs torchtitan: pip install 'thinwire[torchtitan]'"
            )
        if not version.startswith(f"{tried}."):
            warnings.warn(
                f"tried with torchtitan {tried}, and this is {version}: compare a few steps with "
                "torchtitan's own before a long run",
                stacklevel=2,
            )
        _check_moved("configuration", config, OF_CONFIG, version)
        if reasons := _refusals(config, self.strategy):
            raise AttachError("cannot put a strategy to work:\n" + "\n".join(reasons))
        # 2. shard over the other dimensions alone
        spec = config.model_spec
        shard = functools.partial(_shard_alone, spec.parallelize_fn)
        trainer = replace(config, model_spec=replace(spec, parallelize_fn=shard)).build()
        # 3. take part in what the trainer does
        try:
            _check_moved("trainer", trainer, OF_TRAINER, version)
            if trainer.checkpointer.enable:
                _check_moved("trainer", trainer, WHERE_IT_SAVES, version)
            self._join(trainer)
        except BaseException:
            trainer.close()
            raise
        return trainer

    def _join(self, trainer: Any) -> None:
        if len(trainer.optimizers.optimizers) != 1:
            raise AttachError(
                f"the trainer has {len(trainer.optimizers.optimizers)} optimisers: Thinwire counts "
                "the steps of one. Give all param_groups the same optimizer_name"
            )
        checkpointer, logger = trainer.checkpointer, trainer.metrics_processor
        checkpointer.load = functools.partial(self._load, trainer, checkpointer.load)
        checkpointer.save = functools.partial(self._save, trainer, checkpointer.save)
        logger.log = functools.partial(self._log, logger.log)
        trainer.close = functools.partial(self._close, trainer.close)
        if trainer.config.validator.enable:
            validator = trainer.validator
            validator.validate = functools.partial(self._in_common, validator.validate)

    # -- what the trainer does

    def _load(self, trainer: Any, load: Callable[..., bool], step: int = -1) -> bool:
        """Load torchtitan's checkpoint, then attach, as anchors are the weights of that moment."""
        loaded = load(step)
        self.sync = attach(
            trainer.model_parts[0],
            trainer.optimizers.optimizers[0],
            self.strategy,
            mesh=trainer.parallel_dims.get_mesh(DIM),
            mesh_dim=DIM,
            **self._options,
        )
        # A model alone, without the trainer's step, begins anew.
        if loaded and trainer.step:
            checkpointer = trainer.checkpointer
            own = Path(checkpointer.folder) / f"step-{trainer.step}"
            folder = own if own.is_dir() else Path(checkpointer.initial_load_path)
            try:
                self.sync.load_checkpoint(folder, KEY)
            except CheckpointError as error:
                self.sync.close()
                raise CheckpointError(
                    f"the run goes on from {str(folder)!r}, and the strategy cannot: {error}"
                ) from error
        return loaded

    def _save(
        self, trainer: Any, save: Callable[..., bool], step: int, last_step: bool = False
    ) -> bool:
        checkpointer = trainer.checkpointer
        if not checkpointer.enable or not checkpointer._should_save(step, last_step):
            return save(step, last_step)
        assert self.sync is not None
        # This rank's own weights are in the state; those that ranks have in common are the model.
        checkpointer.states[KEY] = self.sync.state_dict()
        try:
            return bool(self._in_common(save, step, last_step))
        finally:
            del checkpointer.states[KEY]

    def _log(
        self, log: Callable[..., None], *args: Any, extra_metrics: Any = None, **more: Any
    ) -> None:
        assert self.sync is not None
        log(*args, extra_metrics={**(extra_metrics or {}), **metrics_of(self.sync)}, **more)

    def _in_common(self, call: Callable[..., Any], *args: Any, **more: Any) -> Any:
        """Call with the weights that ranks have in common, where those differ between landings."""
        assert self.sync is not None
        with self.sync.common_weights():
            return call(*args, **more)

    def _close(self, close: Callable[[], None]) -> None:
        """Leave the model with the weights that ranks have in common, and close."""
        sync, self.sync = self.sync, None
        if sync is not None:
            close_with_common_weights(sync)
        close()


def _check_moved(what: str, owner: Any, names: tuple[str, ...], version: str) -> None:
    """Check that torchtitan has what is read of it.

    Raises:
        AttachError: a name is not there any more.
    """
    for name in names:
        try:
            attrgetter(name)(owner)
        except AttributeError as error:
            raise AttachError(
                f"torchtitan {version} has no `{name}` in its {what}, which a strategy needs: "
                f"install torchtitan {TRIED['torchtitan'][0]}"
            ) from error


def _refusals(config: Any, strategy: Strategy | None) -> list[str]:
    """Return why a configuration cannot carry a strategy."""
    parallel, reasons = config.parallelism, []
    if parallel.data_parallel_replicate_degree < 2:
        reasons.append(
            "there is one replica, so nothing is left to synchronise: set "
            "parallelism.data_parallel_replicate_degree"
        )
    if parallel.spmd_backend != "partial_dtensor":
        reasons.append(
            f"parallelism.spmd_backend={parallel.spmd_backend!r} has the replicas in the mesh of "
            "its parameters and inputs: take 'partial_dtensor'"
        )
    if parallel.pipeline_parallel_degree > 1:
        reasons.append(
            "a pipeline stage has an optimiser of its own for each of its parts, and Thinwire "
            "counts the steps of one: leave out pipeline_parallel_degree"
        )
    if parallel.expert_parallel_degree > 1:
        reasons.append(
            "experts are sharded over other ranks than the rest, so the ranks of a replica have "
            "no one order: leave out expert_parallel_degree"
        )
    if not config.training.disable_cuda_graphs:
        reasons.append(
            "a CUDA graph that is replayed runs no hooks of parameters: set "
            "training.disable_cuda_graphs"
        )
    own_weights = strategy is not None and strategy.on.clock == "step"
    if own_weights and getattr(config.checkpoint, "async_mode", "") == "async_with_pinned_mem":
        reasons.append(
            "checkpoint.async_mode='async_with_pinned_mem' copies weights after save() has "
            "returned, when they are this rank's own again: take 'async' or 'disabled'"
        )
    return reasons


def _shard_alone(parallelize: Callable[..., nn.Module], model: nn.Module, **given: Any) -> Any:
    """Shard a model as torchtitan does, over all dimensions but that of the replicas."""
    dims = given.pop("parallel_dims")
    dims.build_mesh()
    seen = copy.copy(dims)
    seen.dp_replicate = 1
    made = parallelize(model, parallel_dims=seen, **given)
    # torchtitan divides the loss by the tokens of all replicas and sums. Here replicas are
    # averaged, and on local steps a replica goes by its own mean.
    gloo = dims.get_mesh(DIM).get_group().name() == "gloo"
    for module in fsdp_modules(made):
        module.set_gradient_divide_factor(1 / dims.dp_replicate)
        if gloo:  # which cannot multiply as it reduces
            module.set_force_sum_reduction_for_comms(True)
    return made
