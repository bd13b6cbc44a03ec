"""`attach`: check, agree, start equal, and hand out a syncer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from thinwire.core import Driver, Route, Seat
from thinwire.drive.local import Fabric
from thinwire.drive.torch import TorchDriver
from thinwire.engine import agree, probe
from thinwire.engine.buckets import FlatBucket, plan
from thinwire.engine.meter import Meter, Row
from thinwire.engine.syncer import Options, Syncer
from thinwire.errors import AttachError
from thinwire.strategy import Strategy
from thinwire.version import __version__


def attach(  # noqa: PLR0913  (options by name; each is one thing a user may want)
    model: nn.Module,
    optimizer: Optimizer,
    strategy: Strategy | None = None,
    *,
    group: Any = None,
    weight: float = 1.0,
    scaler: Any = None,
    buffers: Literal["broadcast", "local"] = "broadcast",
    bucket_bytes: int = 25 << 20,
    slice_bytes: int | None = None,
    lanes: int = 1,
    timeout: timedelta = timedelta(minutes=5),
    seed: int = 0,
    driver: Driver | None = None,
) -> Syncer:
    """Put a strategy to work; the training loop stays as it is. Every rank of the group calls it alike.

    With gradients, the mean is in `.grad` when `backward()` returns. All parameters and buffers start as rank 0's.

    Args:
        model: any module whose trained parameters are on one device; frozen and shared ones are welcome. Not wrapped in DDP or FSDP.
        optimizer: the one that updates it.
        strategy: when × what × how × on; `None` is plain data parallelism.
        group: a process group of `torch.distributed`; `None` is the default group, or a world of 1 where there is none.
        weight: this rank's weight in means, at least 0 (its batch size, say); `sync.weigh` changes it.
        scaler: the `torch.amp.GradScaler` of the loop, where there is one: residuals are then kept in unscaled units, and a step
            that one rank's scaler skips counts for its clock.
        buffers: "broadcast" gives every rank rank 0's persistent buffers (BatchNorm's statistics) at each landing, as DDP does;
            "local" leaves each rank its own.
        bucket_bytes: how much is gathered before it is sent; the first bucket is 1 MiB.
        slice_bytes: cut buckets into flights of about this size, at the codec's grain.
        lanes: flights that travel side by side, each lane with its own connections (and thread, or CUDA stream).
        timeout: the longest that one hop may take; after it the ranks that no longer answer are named.
        seed: of every random draw (stochastic rounding, random-k, first factors); the same on every rank.
        driver: who moves the flights; `None` is `torch.distributed`. `thinwire.drive.local.Fabric` runs N ranks in one process.

    Raises:
        AttachError: nothing trains, parameters on several devices or of a type that has no place in a bucket, options out of range.
        StrategyError: a route that cannot serve a world of this size.
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
    strategy = strategy if strategy is not None else Strategy()
    problems = _problems(model, optimizer, strategy, bucket_bytes, slice_bytes, lanes, buffers, scaler)
    device = next((param.device for param in model.parameters() if param.requires_grad), torch.device("cpu"))
    driver = driver if driver is not None else _driver(group, lanes, timeout, device)
    meter = Meter(driver.world)
    try:
        told = agree.share(driver, meter, "\n".join(problems).encode(), "attach: asking every rank for problems", device)
        if any(told):
            said = [f"rank {rank}: {text.decode()}" for rank, text in enumerate(told) if text]
            raise AttachError("cannot attach:\n" + "\n".join(said))
        agree.must_agree(driver, meter, _facts(model, strategy, bucket_bytes, slice_bytes, lanes, buffers, seed, scaler), device)
        link = probe.measured(driver, meter, device, driver.transport) if strategy.how.measures else None
        how = strategy.how.settle(driver.world, link)
        agree.must_agree(driver, meter, {"route, as this rank's host has it": repr(how)}, device)
        driver.prepare(how.groups(driver.world))
        for run in _runs([*model.parameters(), *model.buffers()], bucket_bytes):
            agree.broadcast(driver, meter, run, "attach: rank 0's parameters and buffers")
        built = _build(model, strategy, how, driver, bucket_bytes, slice_bytes, seed)
        for bucket in built:
            chosen = dict.fromkeys(repr(how.choose(strategy.what, part.spec, driver.world)) for part in bucket.slices)
            meter.rows.append(Row(f"bucket {bucket.index}", bucket.spec.numel, route=", ".join(chosen) if how.measures else ""))
        sync = Syncer(model, optimizer, strategy, how, driver, built, meter, Options(seed, buffers, scaler))
        sync.shares = agree.shares([float(told) for told in sync.share(repr(float(weight)).encode(), "attach: weights")])
    except BaseException:
        driver.close()
        raise
    return sync


def _driver(group: Any, lanes: int, timeout: timedelta, device: torch.device) -> Driver:
    if dist.is_available() and dist.is_initialized():
        return TorchDriver(group, lanes, timeout, device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise AttachError(
            f"a launcher started {os.environ['WORLD_SIZE']} ranks, but torch.distributed has no process group yet: "
            "call torch.distributed.init_process_group() before attach"
        )
    return Fabric(1).driver(0, lanes)


def _problems(
    model: nn.Module,
    optimizer: Optimizer,
    strategy: Strategy,
    bucket_bytes: int,
    slice_bytes: int | None,
    lanes: int,
    buffers: str,
    scaler: Any,
) -> list[str]:
    """What this rank cannot attach, as sentences."""
    if not isinstance(strategy, Strategy):
        return [f"strategy={strategy!r} is no Strategy; take one from thinwire.recipes, such as recipes.powersgd()"]
    found = []
    trained = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    if not trained:
        found.append("the model has nothing to train: no parameter requires a gradient. Unfreeze some before attach")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        found.append("the model is wrapped in DistributedDataParallel, which averages gradients itself: attach the bare module")
    for name, param in trained:
        if hasattr(param, "placements"):
            found.append(
                f"{name!r} is a DTensor: sharded parameters are not supported here; attach before sharding, or use replicated parameters"
            )
        elif not param.is_floating_point():
            found.append(f"{name!r} is of {param.dtype}: only real floating-point parameters have a place in a bucket")
    devices = sorted({str(tensor.device) for tensor in (*model.parameters(), *model.buffers())})
    if len(devices) > 1:
        found.append(f"parameters and buffers are on {', '.join(devices)}: move them to one device")
    unfit = strategy.on.refuses_optimizer(optimizer)
    found += [unfit] if unfit else []
    found += _bad_options(strategy, bucket_bytes, slice_bytes, lanes, buffers, scaler)
    if trained and not found:
        try:
            plan(model, bucket_bytes, strategy.when, wide=False)
        except AttachError as error:
            found.append(str(error))
    return found


def _bad_options(strategy: Strategy, bucket_bytes: int, slice_bytes: int | None, lanes: int, buffers: str, scaler: Any) -> list[str]:
    found = []
    for option, value in (("bucket_bytes", bucket_bytes), ("slice_bytes", 1 if slice_bytes is None else slice_bytes), ("lanes", lanes)):
        if not isinstance(value, int) or value < 1:
            found.append(f"{option}={value!r}: at least 1")
    if scaler is not None and scaler.is_enabled() and strategy.on.clock == "backward" and strategy.when.delay:
        found.append(f"a GradScaler with {strategy.when!r}: a mean would land in another step's scale, and none in the first. Use bf16")
    if scaler is not None and scaler.is_enabled() and strategy.on.clock == "backward" and not strategy.on.linear:
        found.append(
            f"a GradScaler with {strategy.on!r}: what lands in .grad is not in units of the loss and must not be unscaled. Use bf16"
        )
    if buffers not in ("broadcast", "local"):
        found.append(f"buffers={buffers!r}: choose 'broadcast' or 'local'")
    return found


def _runs(tensors: list[torch.Tensor], nbytes: int) -> Iterator[list[torch.Tensor]]:
    """The tensors in runs of about `nbytes`, so that starting equal needs no second copy of the model."""
    run: list[torch.Tensor] = []
    for tensor in tensors:
        run.append(tensor)
        if sum(t.numel() * t.dtype.itemsize for t in run) >= nbytes:
            yield run
            run = []
    if run:
        yield run


def _facts(
    model: nn.Module, strategy: Strategy, bucket_bytes: int, slice_bytes: int | None, lanes: int, buffers: str, seed: int, scaler: Any
) -> dict[str, Any]:
    """What every rank must hold alike, in the order in which a difference is told."""
    return {
        "thinwire version": __version__,
        "strategy": repr(strategy),
        "bucket_bytes": bucket_bytes,
        "slice_bytes": slice_bytes,
        "lanes": lanes,
        "buffers": buffers,
        "seed": seed,
        "scaler given": scaler is not None,
        "model parameters": [[name, list(p.shape), str(p.dtype), p.requires_grad] for name, p in model.named_parameters()],
        "model buffers": [[name, list(b.shape), str(b.dtype)] for name, b in model.named_buffers()],
    }


def _build(
    model: nn.Module, strategy: Strategy, how: Route, driver: Driver, bucket_bytes: int, slice_bytes: int | None, seed: int
) -> list[FlatBucket]:
    on_gradients = strategy.on.clock == "backward"
    buckets = plan(model, bucket_bytes, strategy.when, wide=not on_gradients)
    seat = Seat(driver.rank, tuple(range(driver.world)), 0, seed)
    first = 0
    for bucket in buckets:
        bucket.cut(slice_bytes, strategy.what, how, seat, driver.lanes, first)
        first += len(bucket.slices)
        if on_gradients:
            bucket.make_buffers(strategy.when.depth)
        bucket.world, bucket.when = driver.world, strategy.when
        bucket.state = strategy.on.init(bucket)
    return buckets
