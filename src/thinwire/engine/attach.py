"""Attach a strategy to a model: validate, agree, tune, build, and return a syncer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from thinwire import env
from thinwire.core import Driver, RankContext
from thinwire.drive.local import Fabric
from thinwire.drive.torch import TorchDriver
from thinwire.engine import agree, living, savings, wrappers
from thinwire.engine.bound import bind
from thinwire.engine.buckets import FlatBucket
from thinwire.engine.flights import Flights
from thinwire.engine.lane_plan import MOST_LANES
from thinwire.engine.mesh import replicate_group, shard_groups
from thinwire.engine.nonfinite import Policy
from thinwire.engine.observe.meter import Meter
from thinwire.engine.options import Auto, Options, Overlap, SourceName, facts, problems
from thinwire.engine.own_layout import Layout, OwnLayout
from thinwire.engine.replica import Replica
from thinwire.engine.session import Session
from thinwire.engine.shards import TORCH, is_sharded, local_of, moved_names, warn_of_rows
from thinwire.engine.sources.shards import ShardLayout
from thinwire.engine.syncer import Syncer
from thinwire.engine.weights import Weights
from thinwire.errors import AttachError
from thinwire.strategy import Strategy


def attach(  # noqa: PLR0913  (options by name; each is one thing a user may want)
    model: nn.Module,
    optimizer: Optimizer,
    strategy: Strategy | None = None,
    *,
    group: Any = None,
    mesh: Any = None,
    mesh_dim: str = "replicate",
    weight: float = 1.0,
    scaler: Any = None,
    buffers: Literal["broadcast", "local"] = "broadcast",
    bucket_bytes: int = 25 << 20,
    slice_bytes: int | Auto | None = None,
    lanes: int | Auto = 1,
    overlap: Overlap = "backward",
    check_every: int | Auto | None = "auto",
    timeout: timedelta = timedelta(minutes=5),
    seed: int = 0,
    nonfinite: Policy = "raise",
    source: SourceName = "hooks",
    driver: Driver | None = None,
) -> Syncer:
    """Put a strategy to work; the training loop stays as it is. Every rank of the group calls it
    alike.

    With gradients, the mean is in `.grad` when `backward()` returns, unless `overlap` says
    otherwise. All parameters and buffers start as rank 0's.

    Args:
        model: any module whose trained parameters are on one device; frozen and shared ones are
            welcome. Not wrapped in DDP. Its parameters may be DTensors, such as those of
            `fully_shard` (FSDP2): see `mesh`.
        optimizer: the one that updates it.
        strategy: when × what × how × on; `None` is plain data parallelism.
        group: a process group of `torch.distributed`; `None` is the default group, or a world of 1
            where there is none.
        mesh: a `DeviceMesh`, in place of a group: its dimension `mesh_dim` has the ranks that
            synchronise. Where parameters are sharded over other dimensions of it, each rank sends
            its shards; then it may be left out, as the parameters name it.
        mesh_dim: the dimension over which there are replicas.
        weight: this rank's weight in means, at least 0 (such as its batch size); `sync.weigh`
            changes it. A replica that is sharded has the sum of its ranks' weights.
        scaler: the `torch.amp.GradScaler` of the loop, where there is one: residuals are then kept
            in unscaled units, and a step that one rank's scaler skips counts for its clock.
        buffers: "broadcast" gives every rank rank 0's persistent buffers (BatchNorm's statistics)
            at each landing, as DDP does; "local" leaves each rank its own.
        bucket_bytes: how much is gathered before it is sent; the first bucket is 1 MiB.
        slice_bytes: cut buckets into flights of about this size, at the codec's grain. Codecs that
            choose among values do so in each slice.
        lanes: flights that travel side by side, each lane with its own connections (and thread, or
            CUDA stream). A `driver` that is given has its own number of them, and its own timeout.
            "auto", of one or both: as many, and of such a size, as take the least time on the link,
            which is measured (in a second at most, or 20 round trips where these are longer than 50
            ms), by the route's formula and the codec's speed here. `sync.report()` shows them.
        overlap: what gradients' way over the wire is hidden behind. "backward": they are in `.grad`
            when it returns. "forward": a bucket lands, and its parameters take their optimiser
            step, just before the next forward pass reaches them; the weights are the same bits.
            Whatever reads gradients, or weights by another way than the module that holds them,
            calls `sync.land()` first. "priority": so, too, and slices go in the order in which that
            pass needs them; small buckets and slices make the most of it.
        check_every: compare what ranks must hold equal every so many steps (at the landing after
            them, on local steps) and raise on every rank where it differs, by a flipped bit for
            example. "auto": as often as costs less than 0.5 % of the time of training, which all
            ranks measure in the first steps and agree on; off where they never hold equal
            parameters, or compute on different machines. `None`: never. It finds ranks that are
            unequal; where all hold the same wrong values, it finds nothing.
        timeout: the longest that one hop may take; after it the ranks that no longer answer are
            named.
        seed: of every random draw (stochastic rounding, random-k, first factors); the same on every
            rank.
        nonfinite: what to do where some rank's gradients, or after local steps its parameters, are
            not finite. "raise": every rank raises `NonFiniteError` before they are applied, naming
            rank, step and parameter. "skip": the optimiser's step is left out on every rank (on
            gradients only). "pass": they are applied. On gradients it is judged in
            `optimizer.step()`, so a step that a GradScaler skips is no trouble. Values that are
            large but finite pass: clip them.
        source: what brings gradients. "hooks" takes each one as `backward()` makes it, so that
            buckets fly meanwhile. "manual" takes all of them where the loop calls `sync.reduce()`,
            after its backward passes and before `optimizer.step()`: for loops in which hooks of
            parameters do not run, or that accumulate by themselves. On gradients only.
        driver: who moves the flights; `None` is `torch.distributed`. `thinwire.drive.local.Fabric`
            runs N ranks in one process.

    Raises:
        AttachError: nothing trains, parameters on several devices or of a type that has no place in
            a bucket, options out of range, weights that are negative, all 0, or differ over
            `gossip()`, which does not broadcast buffers either.
        StrategyError: a route that cannot serve a world of this size, `by_rank` with fewer codecs
            than ranks or more, a parameter that the outer optimiser refuses.
        DisagreementError: ranks hold different strategies, models or options.
        RankLostError: a rank did not come, or went.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with attach(model, optimizer) as sync:
        ...     model(torch.ones(1, 4)).sum().backward()
        ...     optimizer.step()
        ...     sync.report().sent_bytes
        0.0
    """
    chosen = strategy if strategy is not None else Strategy()
    # 1. by a mesh: among which ranks, and by which layout
    sharded = any(map(is_sharded, model.parameters()))
    if mesh is not None and group is not None:
        raise AttachError("both group= and mesh= say who synchronises: give one of them")
    if driver is None and group is None and (mesh is not None or sharded):
        group = replicate_group(model, mesh, mesh_dim)
    layout: Layout = OwnLayout()
    if sharded:
        layout = _shards(model, timeout)
        source = "shards" if source == "hooks" else source
    # 2. the rest
    options = Options(
        bucket_bytes,
        slice_bytes,
        lanes,
        overlap,
        buffers,
        scaler,
        seed,
        nonfinite,
        check_every,
        source,
        layout,
    )
    return set_up(
        model,
        optimizer,
        chosen,
        options,
        weight,
        lambda device: driver if driver is not None else driver_of(group, lanes, timeout, device),
    )


def set_up(
    model: nn.Module,
    optimizer: Optimizer | None,
    strategy: Strategy,
    options: Options,
    weight: float,
    make_driver: Callable[[torch.device], Driver],
) -> Syncer:
    """Attach by options that are gathered; see `attach`. Adapters of other frameworks call it.

    Args:
        optimizer: `None` where it is not known, which gradients can do without.
        make_driver: makes the driver for the parameters' device.
    """
    # 1. validate: what this rank cannot attach
    planned: list[FlatBucket] = []
    problems_here = problems(model, optimizer, strategy, options, planned=planned)
    device = next(
        (param.device for param in model.parameters() if param.requires_grad), torch.device("cpu")
    )
    driver = make_driver(device)
    meter, layout = Meter(driver.world), options.layout
    try:
        # 2. agree: every rank raises what any rank has found, or the first fact that differs
        problems_here += (
            living.conflicts(model, strategy, driver.global_ranks, driver.world)
            if not problems_here
            else []
        )
        problems_by_rank = agree.all_gather(
            driver,
            meter,
            "\n".join(problems_here).encode(),
            "attach: asking every rank for problems",
            device,
        )
        listed = agree.listed_problems(
            [text.decode() for text in problems_by_rank], "cannot attach"
        )
        layout.replica.refuse_problems(listed, meter, "attach")
        with layout.replica.agreeing(meter, "attach"):
            agree.must_agree(driver, meter, facts(model, strategy, options), device)
        for others in layout.replica.drivers:
            same = facts(model, strategy, options, shards=False)
            agree.must_agree(others, meter, same, device)
        layout.replica.meet(driver, meter)
        # 3. tune: measure the link where something is chosen by it, and bind routes to the world
        bound = bind(strategy, options, driver, meter, planned, device)
        # 4. build: connections, rank 0's values everywhere, buckets with their state. All ranks
        #    make the connections together, before the first parameters travel.
        bound.prepare(driver)
        # Buffers, too, whatever `buffers` says: all ranks start as rank 0.
        for run in _runs([*model.parameters(), *model.buffers()], options.bucket_bytes):
            agree.broadcast(
                driver, meter, run, "attach: rank 0's parameters and buffers", bound.link
            )
        built = bound.build(planned, strategy, driver, options.seed)
        meter.rows += bound.rows(built, strategy)
        savings.warn_if_little(
            strategy,
            bound.how,
            built,
            RankContext(driver.rank, tuple(range(driver.world)), 0, options.seed),
            stacklevel=3,
        )
        warn_of_rows(strategy.what, layout.replica.ranks)
        # 5. put the parts together; the syncer last, as it hooks on to the model
        session = Session.begin(
            model, wrappers.unwrapped(optimizer), strategy, driver, built, meter, options
        )
        flights = Flights(session, bound)
        weights = Weights(driver, meter, strategy.how, device, layout.replica)
        weights.begin(float(weight))
        meter.transport_s, meter.transport_before_s = driver.transport_s, driver.transport_s()
        sync = Syncer(session, flights, weights)
    # Lanes are threads and sockets: an attach that fails must not leave them open.
    except BaseException:
        driver.close()
        layout.close()
        raise
    return sync


def _shards(model: nn.Module, timeout: timedelta) -> ShardLayout:
    """Return the layout of a sharded model, with connections among the ranks of its replica."""
    if moved := moved_names(model):
        raise AttachError(
            f"torch {torch.__version__} has no {', '.join(moved)}, by which shards are found: use "
            f"torch {TORCH}"
        )
    if not torch.__version__.startswith(f"{TORCH}."):
        warnings.warn(
            f"shards were tried with torch {TORCH}, and this is {torch.__version__}: compare a few "
            "steps with native HSDP before a long run",
            stacklevel=3,
        )
    device = next(param.device for param in model.parameters())
    drivers = [TorchDriver(group, 1, timeout, device) for group in shard_groups(model)]
    layout = ShardLayout(model, Replica(drivers, device))
    layout.name_parameters()
    return layout


def driver_of(group: Any, lanes: int | Auto, timeout: timedelta, device: torch.device) -> Driver:
    """Return the driver of a process group, or of one rank alone where there is none.

    Args:
        lanes: how many; "auto" makes as many as may be chosen.

    Raises:
        AttachError: the group cannot carry the model's tensors, or has not been made yet.
    """
    count = MOST_LANES if lanes == "auto" else lanes
    if dist.is_available() and dist.is_initialized():
        if device.type == "cpu" and dist.get_backend(group) == "nccl":
            raise AttachError(
                "the model is on the CPU and the group's backend, nccl, carries CUDA tensors "
                "only: take backend='gloo'"
            )
        return TorchDriver(group, count, timeout, device)
    # Else each of the ranks would train by itself, in silence.
    if env.world_size() > 1:
        raise AttachError(
            f"a launcher started {env.world_size()} ranks, but torch.distributed has no "
            "process group yet: "
            "call torch.distributed.init_process_group() before attach"
        )
    return Fabric(1).driver(0, count)


def _runs(tensors: list[torch.Tensor], nbytes: int) -> Iterator[list[torch.Tensor]]:
    """Yield the tensors in runs of about `nbytes`: a broadcast copies one run, not the model."""
    run: list[torch.Tensor] = []
    size = 0
    for tensor in tensors:
        run.append(tensor)
        size += local_of(tensor).numel() * tensor.dtype.itemsize
        if size >= nbytes:
            yield run
            run, size = [], 0
    if run:
        yield run
