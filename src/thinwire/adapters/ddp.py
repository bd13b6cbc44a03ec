"""Put a strategy to work inside DistributedDataParallel."""

from __future__ import annotations

import warnings
import weakref
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from thinwire.engine.attach import driver_of, set_up
from thinwire.engine.compiled import untraced
from thinwire.engine.nonfinite import Policy
from thinwire.engine.options import Auto, Options
from thinwire.engine.sources.ddp import DdpHook, DdpLayout
from thinwire.engine.syncer import Syncer
from thinwire.engine.uncopied import Uncopied
from thinwire.errors import AttachError
from thinwire.planner.machine.frameworks import TRIED
from thinwire.strategy import Strategy

_TORCH = TRIED["torch"][0]


def ddp_hook(  # noqa: PLR0913  (options by name, as those of `attach`)
    ddp: DistributedDataParallel,
    strategy: Strategy | None = None,
    *,
    optimizer: Optimizer | None = None,
    weight: float = 1.0,
    scaler: Any = None,
    slice_bytes: int | Auto | None = None,
    lanes: int | Auto = 1,
    check_every: int | Auto | None = "auto",
    timeout: timedelta = timedelta(minutes=5),
    seed: int = 0,
    nonfinite: Policy = "raise",
) -> Syncer:
    """Put a strategy to work on a DDP module; the training loop stays as it is. Every rank calls it
    alike, before the first backward pass.

    With gradients, each of DDP's buckets is a bucket of the strategy: it flies while backward goes
    on, and the mean is in `.grad` when `backward()` returns. `no_sync()`, `join()`,
    `find_unused_parameters`, `static_graph` and `gradient_as_bucket_view` work as they do without a
    hook. With local steps (`deltas(…)`, `parameters()`) DDP averages nothing any more, and means
    travel as the schedule has it. The syncer closes when the DDP module goes, or the process ends.

    Args:
        ddp: the wrapped model, or `torch.compile` of it; its process group is the group.
        strategy: when × what × how × on; `None` is DDP's own mean.
        optimizer: the one that updates the model; local steps need it. With it, an optimiser that
            steps parameters of other models, or gradients set by hand, is found, too.
        weight: this rank's weight in means, at least 0; `sync.weigh` changes it.
        scaler: the `torch.amp.GradScaler` of the loop, where there is one.
        slice_bytes: cut buckets into flights of about this size.
        lanes: flights that travel side by side; "auto", of one or both, measures the link.
        check_every: compare what ranks must hold equal every so many steps.
        timeout: the longest that one hop may take; after it the ranks that no longer answer are
            named.
        seed: of every random draw; the same on every rank.
        nonfinite: what to do where some rank's values are not finite; see `attach`.

    Returns:
        The syncer, as of `attach`: with `report()`, `state_dict()`, `check()`, `switch(strategy)`.

    Raises:
        AttachError: no DDP module, one that has a hook already or averages in other ways (mixed
            precision, delayed all-reduce), or what `attach` refuses.

    Example:
        >>> import tempfile, torch.distributed as dist
        >>> from thinwire import recipes
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = dist.FileStore(f"{folder}/store", 1)
        ...     dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        ...     ddp = DistributedDataParallel(torch.nn.Linear(4, 2))
        ...     optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        ...     sync = ddp_hook(ddp, recipes.powersgd(rank=1))
        ...     ddp(torch.ones(1, 4)).sum().backward()
        ...     optimizer.step()
        ...     print(sync.step)
        ...     sync.close()
        ...     dist.destroy_process_group()
        1
    """
    # 1. refuse what no hook can serve; torch.compile(ddp) holds the module that it compiled
    ddp = getattr(ddp, "_orig_mod", ddp)
    if reasons := _refusals(ddp):
        raise AttachError("cannot put a strategy to work:\n" + "\n".join(reasons))
    if not torch.__version__.startswith(f"{_TORCH}."):
        warnings.warn(
            f"ddp_hook was tried with torch {_TORCH}, and this is {torch.__version__}: "
            "compare a few steps with plain DDP before a long run",
            stacklevel=2,
        )
    # 2. attach, with DDP's layout and group. DDP itself broadcasts buffers, in its forward pass.
    strategy = strategy if strategy is not None else Strategy()
    on_gradients = isinstance(strategy, Strategy) and strategy.on.clock == "backward"
    layout = DdpLayout(ddp, _earlier(ddp))
    options = Options(
        25 << 20,
        slice_bytes,
        lanes,
        "backward",
        "local" if on_gradients else "broadcast",
        scaler,
        seed,
        nonfinite,
        check_every,
        "ddp",
        layout,
    )
    group = ddp.process_group
    sync = set_up(
        ddp.module,
        optimizer,
        strategy,
        options,
        weight,
        lambda device: driver_of(group, lanes, timeout, device),
    )
    # 3. hand DDP the hook, which stays for good; and close without the user's help
    try:
        _register(ddp, layout.hook, sync)
    except BaseException:
        sync.close()
        raise
    weakref.finalize(ddp, _end, sync)
    return sync


def _end(sync: Syncer) -> None:
    """Close with the module, or at the end of the process: what fails has been raised before."""
    with suppress(Exception):
        sync.close()


def _earlier(ddp: DistributedDataParallel) -> DdpHook | None:
    """Return the hook of an earlier syncer of this module, as DDP takes one for good."""
    return next((state for _, state in ddp._comm_hooks if isinstance(state, DdpHook)), None)


def _refusals(ddp: Any) -> list[str]:
    """Return why this module can have no hook of ours."""
    # 1. No DDP module at all.
    if not isinstance(ddp, DistributedDataParallel):
        return [
            f"ddp_hook takes a DistributedDataParallel, not a {type(ddp).__name__}: use "
            "thinwire.attach(model, optimizer, strategy) for a module without a wrapper"
        ]
    # 2. DDP in a mode that has no place for a hook, or averages otherwise.
    reasons = []
    if ddp.mixed_precision is not None:
        reasons.append(
            "mixed_precision of DDP takes the one hook that DDP has: leave it out, and use "
            "torch.autocast"
        )
    if getattr(ddp, "_delay_all_reduce_all_params", False):
        reasons.append("delay_all_reduce_named_params averages without hooks: leave it out")
    if getattr(ddp, "_use_python_reducer", False):
        reasons.append("DDP's Python reducer (compiled autograd) runs no hooks: turn it off")
    hook = _earlier(ddp)
    if ddp._comm_hooks and (hook is None or hook.active):
        reasons.append("this DDP module has a communication hook already, and takes one only")
    sparse = [
        name
        for name, module in ddp.module.named_modules()
        if isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag) and module.sparse
    ]
    if sparse:
        reasons.append(
            f"{sparse[0]!r} has sparse gradients, which have no place in a flat bucket: build it "
            "with sparse=False"
        )
    # 3. Another torch, where what this needs has another name.
    needed = (
        (ddp, "_has_rebuilt_buckets"),
        (ddp.reducer, "_get_zeros_like_grad_buckets"),
        (torch._C, "_current_graph_task_id"),
    )
    missing = [name for held, name in needed if not hasattr(held, name)]
    if missing:
        reasons.append(
            f"torch {torch.__version__} has no {', '.join(missing)}, by which buckets are found: "
            f"use torch {_TORCH}"
        )
    return reasons


def _register(ddp: DistributedDataParallel, hook: DdpHook, sync: Syncer) -> None:
    hook.sync = sync
    if hook is _earlier(ddp):
        # The hook is there already; a copy of a module lists it, and torch has not registered it.
        with suppress(RuntimeError):
            dist._register_comm_hook(ddp.reducer, hook, _hook)  # type: ignore[attr-defined]
    else:
        try:
            ddp.register_comm_hook(hook, _hook)
        except RuntimeError as error:  # of C++: a built-in hook
            raise AttachError(f"DistributedDataParallel takes no hook: {error}") from error
    # Once for each syncer: of an earlier one, or of a copied module, it does nothing.
    # Not of the module within, which may be compiled with its hooks.
    ddp.register_forward_hook(Uncopied(hook.after_forward))


@untraced
def _hook(hook, bucket):  # type: ignore[no-untyped-def]  # DDP compares annotations with the class
    return hook.run(bucket)
