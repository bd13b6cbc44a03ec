"""Attach to what a framework has prepared: a model in DistributedDataParallel, or a bare one."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from thinwire.adapters.ddp import ddp_hook
from thinwire.engine import agree
from thinwire.engine.attach import attach
from thinwire.engine.shards import is_sharded
from thinwire.engine.syncer import Syncer
from thinwire.engine.wrappers import living_wrapper
from thinwire.errors import AttachError
from thinwire.strategy import Strategy


def attach_prepared(
    model: nn.Module,
    optimizer: Optimizer,
    strategy: Strategy | None = None,
    *,
    framework: str,
    **options: Any,
) -> Syncer:
    """Put a strategy to work on a model that a framework has prepared. Every rank calls it alike.

    In DistributedDataParallel it is `ddp_hook`; where the framework runs one rank alone, or has
    sharded the model by FSDP2, `attach`.

    Args:
        model: the model, in its wrapper or without it: the wrapper is then searched for.
        optimizer: the one that steps it, in the framework's wrapper or without.
        framework: its name, for messages.
        options: as of `ddp_hook`.

    Raises:
        AttachError: there are several ranks, and the framework averages otherwise than by DDP; or
            it has sharded the model over a mesh whose replicas FSDP itself joins.
    """
    wrapper = model if isinstance(model, DistributedDataParallel) else living_wrapper(model)
    if isinstance(wrapper, DistributedDataParallel):
        return ddp_hook(wrapper, strategy, optimizer=optimizer, **options)
    if any(map(is_sharded, model.parameters())):
        return attach(model, optimizer, strategy, **options)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        what = "nothing that averages" if wrapper is None else type(wrapper).__name__
        raise AttachError(
            f"{framework} has put {what} around the model, on {dist.get_world_size()} ranks: "
            "Thinwire works inside DistributedDataParallel. Choose DDP"
        )
    return attach(model, optimizer, strategy, **options)


class CommonWeights:
    """A switch from a rank's own weights to those that ranks have in common, and back.

    Callbacks use it, as a framework has one event before it validates or saves, and another after.
    """

    def __init__(self) -> None:
        self._stack: ExitStack | None = None

    @property
    def shown(self) -> bool:
        return self._stack is not None

    def show(self, sync: Syncer | None) -> None:
        """Show them, where weights differ between landings; every rank calls it alike."""
        if sync is not None and not sync.session.on_gradients and not self.shown:
            self._stack = ExitStack()
            self._stack.enter_context(sync.common_weights())

    def hide(self) -> None:
        """Put this rank's own weights back; a second call does nothing."""
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()


@torch.no_grad()
def close_with_common_weights(sync: Syncer, *, keep: bool = False) -> None:
    """Close a syncer, and leave the model with the weights that ranks have in common.

    Args:
        keep: leave the weights as they are, such as those of the best checkpoint.
    """
    if sync.session.on_gradients or keep:
        sync.close()
        return
    with sync.common_weights() as model:
        common = [param.detach().clone() for param in model.parameters()]
    sync.close()
    for param, value in zip(sync.model.parameters(), common, strict=True):
        param.copy_(value)


def states_of_ranks(sync: Syncer) -> dict[str, torch.Tensor]:
    """Return the state of every rank in one dictionary, for frameworks whose checkpoint is one
    file. Every rank calls it alike; each holds all of it meanwhile."""
    session, whole = sync.session, sync.state_dict()
    for driver in (session.driver, *session.replica.drivers):
        gathered = agree.all_gather(
            driver, session.meter, save(whole), "saving: every rank's state", session.device
        )
        whole = {key: value for packed in gathered for key, value in load(packed).items()}
    return whole
