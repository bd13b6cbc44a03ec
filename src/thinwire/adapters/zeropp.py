"""Encode what FSDP2 sends: the all-gathers of weights, and the reduce-scatters of gradients."""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from thinwire.adapters import sharded
from thinwire.adapters.fsdp_units import Unit, codec_refusals, unit_refusals, units_of
from thinwire.core import Coder, Flight, RankContext, Spec
from thinwire.core.phase import phase
from thinwire.drive.torch import TorchDriver
from thinwire.engine import agree
from thinwire.engine.observe.meter import Meter
from thinwire.errors import AttachError
from thinwire.version import __version__


@dataclass(frozen=True)
class Traffic:
    """Bytes that this rank has sent in FSDP's collectives since `thin_collectives`.

    weights_bytes: encoded weights, all-gathered. 0 where `weights` is `None`: torch sends them.
    secondary_bytes: weights gathered inside a node in the backward pass, not encoded.
    gradients_bytes: encoded gradients. 0 where `gradients` is `None`.
    between_nodes_bytes: how much of all that went to other nodes.
    dense_bytes: what the same collectives send without a codec, each straight to its receiver.
    setup_bytes: what ranks compared at the start.
    waited_s: seconds in these collectives, encoding and decoding among them.
    """

    weights_bytes: float = 0.0
    secondary_bytes: float = 0.0
    gradients_bytes: float = 0.0
    between_nodes_bytes: float = 0.0
    dense_bytes: float = 0.0
    setup_bytes: float = 0.0
    waited_s: float = 0.0

    @property
    def sent_bytes(self) -> float:
        """Return all bytes of the collectives."""
        return self.weights_bytes + self.secondary_bytes + self.gradients_bytes

    @property
    def ratio(self) -> float:
        """Return how many times fewer bytes than dense were sent; 1 where none were."""
        return self.dense_bytes / self.sent_bytes if self.sent_bytes else 1.0


class ThinCollectives:
    """The collectives of a model that `thin_collectives` has replaced; a context manager, which
    closes them."""

    def __init__(self, settings: _Settings, units: Sequence[Unit]) -> None:
        self._counted: dict[str, float] = {}
        self._meter = Meter(1)
        self._units = [weakref.ref(unit.module) for unit in units]
        self._settings = settings
        self._drivers: dict[tuple[int, ...], TorchDriver] = {}
        self.closed = False

    def report(self) -> Traffic:
        """Return the bytes and the seconds so far, of this rank."""
        return Traffic(setup_bytes=self._meter.setup_bytes, **self._counted)

    def close(self) -> None:
        """Give the model torch's own collectives again, and stop the lanes. A second call does
        nothing."""
        from torch.distributed.fsdp._fully_shard import _fsdp_collectives as torchs

        if self.closed:
            return
        self.closed = True
        for ref in self._units:
            if (module := ref()) is not None:
                if self._settings.weights is not None:
                    module.set_custom_all_gather(torchs.DefaultAllGather())
                if self._settings.gradients is not None:
                    module.set_custom_reduce_scatter(torchs.DefaultReduceScatter())
        for driver in self._drivers.values():
            driver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _connect(self, unit: Unit) -> TorchDriver:
        """Return the driver of a unit's shard group; every rank of it makes one alike."""
        if unit.ranks not in self._drivers:
            driver = TorchDriver(unit.group, 1, self._settings.timeout, unit.device)
            self._drivers[unit.ranks] = driver
            driver.prepare(())
        return self._drivers[unit.ranks]

    def _agree(self, units: Sequence[Unit], problems: Sequence[str]) -> None:
        """Raise on every rank what any has found, or the first fact that differs."""
        for ranks, driver in self._drivers.items():
            device = driver.device
            texts = agree.all_gather(
                driver,
                self._meter,
                "\n".join(problems).encode(),
                "attach: asking every rank for problems",
                device,
            )
            agree.refuse_problems(
                [text.decode() for text in texts], "cannot encode what FSDP sends"
            )
            chosen = self._settings
            facts = {
                "thinwire version": __version__,
                "weights": chosen.weights and agree.identified(chosen.weights),
                "gradients": chosen.gradients and agree.identified(chosen.gradients),
                "node_size": chosen.node_size,
                "seed": chosen.seed,
                "shards": [unit.fact for unit in units if unit.ranks == ranks],
            }
            agree.must_agree(driver, self._meter, facts, device)

    def _replace(self, unit: Unit) -> None:
        """Give a unit the collectives that encode."""
        driver, chosen = self._connect(unit), self._settings
        if chosen.weights is not None:
            unit.module.set_custom_all_gather(
                _AllGather(self, driver, unit.name, chosen, chosen.weights)
            )
        if chosen.gradients is not None:
            unit.module.set_custom_reduce_scatter(
                _ReduceScatter(self, driver, unit.name, chosen, chosen.gradients)
            )

    def _fly(self, driver: TorchDriver, flight: Flight[Tensor], label: str, kind: str) -> Tensor:
        """Carry a flight to its end, and count what this rank has sent."""
        begun = time.perf_counter()
        driver.set_phase(label)
        handle = driver.start(flight, 0, label)
        with phase("wait", label):
            result = handle.wait()
        self.count(waited_s=time.perf_counter() - begun, **{kind: handle.sent_bytes})
        return result

    def count(self, **amounts: float) -> None:
        """Add to the report."""
        for name, amount in amounts.items():
            self._counted[name] = self._counted.get(name, 0.0) + amount


@dataclass(frozen=True)
class _Settings:
    """What the user has chosen."""

    weights: Coder | None
    gradients: Coder | None
    node_size: int
    timeout: timedelta
    seed: int


@dataclass
class _Collective:
    """A collective of one FSDP module; torch calls `allocate`, then the object itself."""

    owner: ThinCollectives
    driver: TorchDriver
    name: str
    settings: _Settings
    codec: Coder
    calls: int = field(default=0, init=False)

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return memory for a buffer, as torch's own collectives do."""
        return torch.empty(*size, dtype=dtype, device=device)

    @property
    def world(self) -> int:
        return self.driver.world

    def context(self, step: int) -> RankContext:
        ranks = tuple(range(self.world))
        return RankContext(self.driver.rank, ranks, step, self.settings.seed, self.name)

    def specs(self, like: Tensor, numel: int) -> list[Spec]:
        return [sharded.shard_spec(self.name, owner, like, numel) for owner in range(self.world)]

    def count_planned(self, spec: Spec) -> None:
        """Count what goes to other nodes, and what would be sent without a codec."""
        nodes = self.world // self.settings.node_size
        self.owner.count(
            between_nodes_bytes=(nodes - 1) * self.codec.max_nbytes(spec),
            dense_bytes=(self.world - 1) * spec.numel * spec.dtype.itemsize,
        )


class _AllGather(_Collective):
    """qwZ: every rank's shard of the weights, encoded; the node's secondary shards as they are."""

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False
    ) -> None:
        # 1. hpZ: the weights that this node has kept are what the forward pass computed with. They
        #    are decoded values already, and coding them again would give the backward pass others.
        context = self.context(0)
        if group.size() < self.world:
            inside, _ = sharded.levels(context, self.settings.node_size)
            self.owner._fly(
                self.driver,
                sharded.gather_bytes(input_tensor, output_tensor, inside),
                f"gathering the node's weights of {self.name}",
                "secondary_bytes",
            )
            nbytes = input_tensor.numel() * input_tensor.dtype.itemsize
            self.owner.count(dense_bytes=(group.size() - 1) * nbytes)
            return
        # 2. qwZ. `input_tensor` is torch's copy of the shard, so the master weights stay exact.
        specs = self.specs(input_tensor, input_tensor.numel())
        self.owner._fly(
            self.driver,
            sharded.gather_shards(
                self.codec, input_tensor, output_tensor, specs, context, self.settings.node_size
            ),
            f"gathering weights of {self.name}",
            "weights_bytes",
        )
        self.count_planned(specs[0])


class _ReduceScatter(_Collective):
    """qgZ: this rank's shard of the gradients' sum or mean, of encoded parts."""

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: Any,
        op: Any,
        async_op: bool = False,
    ) -> None:
        times, over = _factors(op, self.world)
        specs = self.specs(input_tensor, output_tensor.numel())
        self.calls += 1  # alike on every rank: it keys the draws of stochastic rounding
        context = self.context(self.calls)
        total = self.owner._fly(
            self.driver,
            sharded.reduce_shards(
                self.codec, input_tensor, specs, context, self.settings.node_size
            ),
            f"adding gradients of {self.name}",
            "gradients_bytes",
        )
        output_tensor.copy_(total.mul_(times).div_(over))
        self.count_planned(specs[0])


def _factors(op: Any, world: int) -> tuple[float, int]:
    """Return what a sum is multiplied by and divided by, of the reduction that FSDP asks for.

    Raises:
        AttachError: it is no sum and no mean.
    """
    if op == dist.ReduceOp.AVG:
        return 1.0, world
    if op == dist.ReduceOp.SUM:
        return 1.0, 1
    state: Any = op.__getstate__()  # the one place in which a multiplied sum shows its factor
    if op == dist.ReduceOp.PREMUL_SUM and isinstance(state, tuple) and isinstance(state[1], float):
        return state[1], 1
    raise AttachError(
        f"FSDP asks for the reduction {op}: encoded gradients can be summed or averaged. Leave "
        "set_gradient_divide_factor, or call set_force_sum_reduction_for_comms(True)"
    )


def thin_collectives(
    model: nn.Module,
    *,
    weights: Coder | None = None,
    gradients: Coder | None = None,
    node_size: int = 1,
    timeout: timedelta = timedelta(minutes=5),
    seed: int = 0,
) -> ThinCollectives:
    """Encode the collectives of a model in FSDP2: ZeRO++'s qwZ, qgZ and hpZ. Every rank calls it
    alike, after `fully_shard` and before the first step.

    The parameters that the optimiser updates stay exact. Each rank computes with decoded weights,
    those of its own shard too, so that all ranks hold the same bits.

    Args:
        model: holds the modules that `fully_shard` was applied to; all of them are served.
        weights: the codec of gathered weights (qwZ), such as `uniform(8)`; `None` leaves torch's
            all-gather.
        gradients: the codec of gradients (qgZ), such as `uniform(4)`; `None` leaves torch's
            reduce-scatter.
        node_size: neighbouring ranks of a shard group that share a fast network. Weights and
            gradients then travel in two levels, so that a node receives each payload once. With
            `fully_shard(reshard_after_forward=node_size)` (hpZ) a node keeps the weights of the
            forward pass, and the backward pass gathers them inside it, exactly.
        timeout: the longest that one hop may take; after it the ranks that no longer answer are
            named.
        seed: of the draws of stochastic rounding; the same on every rank.

    Returns:
        The collectives: `report()` has the bytes, `close()` gives the model torch's own again. They
        close by themselves with the model, or at the end of the process.

    Raises:
        AttachError: a torch that this was not tried with; no module in FSDP2; a codec that keeps
            state, drops entries or needs parameters' shapes; a node size that does not fit.
        DisagreementError: ranks hold different codecs, settings or shards.
        RankLostError: a rank did not come, or went.

    Example:
        >>> import tempfile
        >>> from torch.distributed.fsdp import fully_shard
        >>> from thinwire.what import uniform
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = dist.FileStore(f"{folder}/store", 1)
        ...     dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        ...     model = fully_shard(nn.Linear(4, 2))
        ...     with thin_collectives(model, weights=uniform(8), gradients=uniform(4)) as thin:
        ...         model(torch.ones(1, 4)).sum().backward()
        ...         print(thin.report().sent_bytes)  # one rank sends nothing
        ...     dist.destroy_process_group()
        0.0
    """
    # 1. Refuse what leaves no group of ranks to talk to.
    units = units_of(model)
    if weights is None and gradients is None:
        raise AttachError(
            "thin_collectives without weights= and gradients= changes nothing. For hpZ alone, "
            "fully_shard(reshard_after_forward=node_size) is all that is needed"
        )
    # 2. Connect, then refuse on every rank what any has found.
    settings = _Settings(weights, gradients, node_size, timeout, seed)
    thin = ThinCollectives(settings, units)
    try:
        problems = [
            *codec_refusals("weights", weights),
            *codec_refusals("gradients", gradients),
            *unit_refusals(units, node_size, weights=weights is not None),
        ]
        alone = all(len(unit.ranks) == 1 for unit in units)
        for unit in units:
            if len(unit.ranks) > 1:
                thin._connect(unit)
        if alone:  # nobody to ask
            agree.refuse_problems(["\n".join(problems)], "cannot encode what FSDP sends")
        thin._agree(units, problems)
        # 3. Replace. A group of one rank has no collectives.
        for unit in units:
            if len(unit.ranks) > 1:
                thin._replace(unit)
    # Lanes are threads and sockets: a call that fails must not leave them open.
    except BaseException:
        thin.close()
        raise
    weakref.finalize(model, _end, list(thin._drivers.values()))
    return thin


def _end(drivers: Sequence[TorchDriver]) -> None:
    """Close with the model, or at the end of the process: what fails has been raised before."""
    for driver in drivers:
        with suppress(Exception):
            driver.close()
