"""Hold the facts of one attached model, which are set by `attach` and never changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from thinwire.core import Driver, RankContext, Ranks
from thinwire.engine import agree
from thinwire.engine.buckets import FlatBucket
from thinwire.engine.layout import plain_name
from thinwire.engine.observe.meter import Meter
from thinwire.engine.options import Options, buffer_places
from thinwire.engine.replica import Replica
from thinwire.errors import AttachError
from thinwire.strategy import Strategy


@dataclass(frozen=True)
class Session:
    """An attached model, and by what it is synchronised. Make one with `Session.begin`.

    model: the user's own.
    given_optimizer: the one that steps, without a wrapper; `None` where it was not given.
    strategy: when × what × how × on.
    driver: moves the flights of this rank.
    buckets: every parameter that trains, in flat runs.
    meter: counts bytes and seconds.
    options: what else `attach` was given.
    by_quorum: rounds close with a quorum, so that ranks never all meet.
    frozen: the parameters that do not train, by name: no bucket holds them.
    buffers: the buffers that rank 0 broadcasts: name, module and attribute.
    """

    model: nn.Module
    given_optimizer: Optimizer | None
    strategy: Strategy
    driver: Driver
    buckets: Sequence[FlatBucket]
    meter: Meter
    options: Options
    by_quorum: bool
    frozen: tuple[tuple[str, nn.Parameter], ...]
    buffers: tuple[tuple[str, nn.Module, str], ...]

    @classmethod
    def begin(
        cls,
        model: nn.Module,
        optimizer: Optimizer | None,
        strategy: Strategy,
        driver: Driver,
        buckets: Sequence[FlatBucket],
        meter: Meter,
        options: Options,
        *,
        by_quorum: bool = False,
    ) -> Session:
        """Make a session, and note what of the model does not train and which buffers travel."""
        frozen = tuple(
            (plain_name(name), param)
            for name, param in model.named_parameters()
            if not param.requires_grad
        )
        buffers = tuple(buffer_places(model)) if options.buffers == "broadcast" else ()
        return cls(
            model,
            optimizer,
            strategy,
            driver,
            buckets,
            meter,
            options,
            by_quorum,
            frozen,
            buffers,
        )

    @property
    def optimizer(self) -> Optimizer:
        """Return the optimiser.

        Raises:
            AttachError: it was not given.
        """
        if self.given_optimizer is None:
            raise AttachError("this needs the optimiser: give it to ddp_hook, as optimizer=")
        return self.given_optimizer

    @property
    def on_gradients(self) -> bool:
        """Return whether a step is a backward pass; else it is an optimiser step."""
        return self.strategy.on.clock == "backward"

    @property
    def replica(self) -> Replica:
        """Return the ranks that hold the shards of this replica."""
        return self.options.layout.replica

    @property
    def members(self) -> Ranks:
        """Return the global ranks of all replicas; empty for every rank there is."""
        members = self.replica.members
        return self.driver.global_ranks if members is None else members

    @property
    def device(self) -> torch.device:
        """Return where the parameters are."""
        return self.buckets[0].device

    @property
    def loss_scale(self) -> float:
        """Return the factor of the loop's `GradScaler` at this step; 1 without one."""
        scaler = self.options.scaler
        return float(scaler.get_scale()) if scaler is not None and scaler.is_enabled() else 1.0

    def context(self, step: int) -> RankContext:
        """Return who takes part in the flights of a step."""
        return RankContext(
            self.driver.rank, tuple(range(self.driver.world)), step, self.options.seed
        )

    def all_gather(self, payload: bytes, label: str) -> list[bytes]:
        """Return every rank's bytes, by rank; all ranks call it alike.

        Args:
            payload: this rank's bytes, of any length.
            label: names the exchange where it fails.
        """
        return agree.all_gather(self.driver, self.meter, payload, label, self.device)

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """List the parameters that train, by name, in the order of the buckets."""
        return [
            pair
            for bucket in self.buckets
            for pair in zip(bucket.names, bucket.params, strict=True)
        ]

    def shared_buffers(self) -> list[tuple[str, Tensor]]:
        """List the buffers that are broadcast as they are now: a module may have put another tensor
        in the place of one."""
        return [(name, getattr(module, attribute)) for name, module, attribute in self.buffers]

    def refuse_changed(self) -> None:
        """Raise where the model is no longer what was attached.

        Raises:
            AttachError: a frozen parameter trains now, or a parameter has another type or device.
        """
        for name, param in self.frozen:
            if param.requires_grad:
                raise AttachError(
                    f"{name!r} was frozen at attach and trains now: close the syncer and attach "
                    "again after unfreezing"
                )
        for bucket in self.buckets:
            bucket.refuse_converted()

    def refuse_newly_frozen(self) -> None:
        """Raise where a parameter that local steps hold does not train any more."""
        for name, param in self.trained():
            if not param.requires_grad:
                raise AttachError(
                    f"{name!r} trained at attach and is frozen now: landings of local steps "
                    "would go on moving it. "
                    "Close the syncer and attach again after freezing"
                )
