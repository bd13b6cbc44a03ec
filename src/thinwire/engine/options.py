"""The options of `attach`: which of them cannot be, and what every rank must hold alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from thinwire.core import travel
from thinwire.engine import living, wrappers
from thinwire.engine.agree import identified
from thinwire.engine.buckets import FlatBucket
from thinwire.engine.compiled import is_compiled
from thinwire.engine.layout import plain_name
from thinwire.engine.nonfinite import POLICIES, Policy
from thinwire.engine.own_layout import Layout, OwnLayout
from thinwire.engine.shards import rows_of
from thinwire.errors import AttachError
from thinwire.strategy import Strategy
from thinwire.version import __version__

Overlap = Literal["backward", "forward", "priority"]
Auto = Literal["auto"]
SourceName = Literal["hooks", "manual", "ddp", "shards"]


@dataclass(frozen=True)
class Options:
    """A record of the options of `attach` beside model, optimiser and strategy."""

    bucket_bytes: int
    slice_bytes: int | Auto | None
    lanes: int | Auto
    overlap: Overlap
    buffers: Literal["broadcast", "local"]
    scaler: Any
    seed: int
    nonfinite: Policy = "raise"
    check_every: int | Auto | None = None
    source: SourceName = "hooks"
    layout: Layout = OwnLayout()

    def plan(self, model: nn.Module, strategy: Strategy) -> list[FlatBucket]:
        """Plan a strategy's buckets by the layout; on local steps values fly in float32."""
        wide = strategy.on.clock != "backward"
        return self.layout.plan(model, self.bucket_bytes, strategy.when, wide)


def problems(
    model: nn.Module,
    optimizer: Optimizer | None,
    strategy: Strategy,
    options: Options,
    attached: bool = False,
    planned: list[FlatBucket] | None = None,
) -> list[str]:
    """Return what this rank cannot attach, in sentences.

    Args:
        attached: by these options the model is attached already, and the strategy alone is new.
        planned: takes the buckets, where there is nothing that cannot be.
    """
    # 1. What makes every further question pointless: no strategy, a wrapper that synchronises by
    #    itself, an optimiser of another model.
    if not isinstance(strategy, Strategy):
        return [
            (
                f"strategy={strategy!r} is no Strategy; take one from thinwire.recipes, such as "
                "recipes.powersgd()"
            )
        ]
    reasons = []
    trained = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    if not trained:
        reasons.append(
            "the model has nothing to train: no parameter requires a gradient. Unfreeze some "
            "before attach"
        )
    if inner_wrappers := wrappers.inside(model):
        return reasons + inner_wrappers
    if unfit := options.layout.refusals(model, strategy, options.overlap):
        return reasons + unfit
    if optimizer is not None and (unfit := _misfit(model, optimizer, options.scaler)):
        return reasons + unfit
    # 2. Parameters and buffers: real numbers, on one device.
    optimizer = wrappers.unwrapped(optimizer)
    for name, param in trained:
        if not param.is_floating_point():
            reasons.append(
                f"{name!r} is of {param.dtype}: only real floating-point parameters have a place "
                "in a bucket"
            )
    devices = sorted({str(tensor.device) for tensor in (*model.parameters(), *model.buffers())})
    if len(devices) > 1:
        reasons.append(
            f"parameters and buffers are on {', '.join(devices)}: move them to one device"
        )
    if optimizer is None and strategy.on.clock == "step":
        reasons.append(
            f"{strategy.on!r} counts the steps of the optimiser, which ddp_hook was not given: "
            "give it, as optimizer="
        )
    # 3. Strategy, optimiser and settings together.
    reasons += _of_updates(strategy, optimizer)
    reasons += _of_settings(model, strategy, options)
    reasons += _out_of_range(options)
    # Of a syncer that is attached, the hooks that this looks for are its own.
    if not attached and optimizer is not None:
        reasons += _of_overlap(model, optimizer, options)
    # 4. The bucket layout, tried only where all else is well, as it takes that for granted.
    if trained and not reasons:
        reasons += _of_layout(model, strategy, options, [] if planned is None else planned)
    return reasons


def _of_layout(
    model: nn.Module, strategy: Strategy, options: Options, planned: list[FlatBucket]
) -> list[str]:
    """Plan the buckets, or return why there can be none."""
    try:
        planned += options.plan(model, strategy)
    except AttachError as error:
        return [str(error)]
    return []


def buffer_places(model: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """List the buffers that a checkpoint of the model holds: name, module and attribute."""
    modules = dict(model.named_modules())
    split = [(name, *name.rpartition(".")[::2]) for name, _ in persistent_buffers(model)]
    return [(name, modules[owner], attribute) for name, owner, attribute in split]


def persistent_buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    """List the buffers that a checkpoint of the model holds, by name."""
    names = set(model.state_dict(keep_vars=True))
    return [(name, buffer) for name, buffer in model.named_buffers() if name in names]


def facts(
    model: nn.Module, strategy: Strategy, options: Options, shards: bool = True
) -> dict[str, Any]:
    """Return what every rank must hold alike, in the order in which a difference is reported.

    Args:
        shards: with which shards they hold, which the ranks of one replica do not hold alike.
    """
    return {
        "thinwire version": __version__,
        "strategy": identified(strategy),
        "bucket_bytes": options.bucket_bytes,
        "slice_bytes": options.slice_bytes,
        "lanes": options.lanes,
        "overlap": options.overlap,
        "buffers": options.buffers,
        "seed": options.seed,
        "nonfinite": options.nonfinite,
        "check_every": options.check_every,
        "source": options.source,
        "scaler given": options.scaler is not None,
        "model parameters": [
            [
                plain_name(name),
                list(p.shape),
                str(p.dtype),
                p.requires_grad,
                rows_of(p) if shards else "",
            ]
            for name, p in model.named_parameters()
        ],
        "model buffers": [
            [plain_name(name), list(b.shape), str(b.dtype)] for name, b in model.named_buffers()
        ],
    }


def params_of(optimizer: Optimizer) -> list[Any]:
    """List what an optimiser steps, over all its groups."""
    return [param for group in optimizer.param_groups for param in group["params"]]


def _misfit(model: nn.Module, optimizer: Any, scaler: Any) -> list[str]:
    """Return why this optimiser cannot be the one of this model."""
    plain = wrappers.unwrapped(optimizer)
    if not hasattr(plain, "_optimizer_step_pre_hooks"):
        return [
            (
                f"the optimiser is a {type(optimizer).__name__}, which takes no hooks: give the "
                "torch.optim.Optimizer that it steps"
            )
        ]
    # 1. Whose parameters it steps: some of the model's, and no others that no syncer holds.
    trained = {id(param): name for name, param in model.named_parameters() if param.requires_grad}
    held = params_of(plain)
    reasons = []
    outside = [
        param
        for param in held
        if id(param) not in trained and param.requires_grad and not living.holders(param)
    ]
    if trained and not any(id(param) in trained for param in held):
        reasons.append(
            f"the optimiser holds none of the model's {len(trained)} parameters that train: it is "
            "of another model, or was made before "
            "they were replaced. Make it from this model's parameters, and then attach"
        )
    elif outside:
        reasons.append(
            f"the optimiser holds {len(outside)} parameters that are not the model's (the first "
            f"of shape {tuple(outside[0].shape)}): no "
            "rank would send them, and ranks would drift apart. Make them part of the model (in "
            "an nn.ModuleList with it), or, "
            "if each rank is to keep its own, give them an optimiser of their own"
        )
    # 2. A wrapper's own scaler, which would scale the loss without the syncer's knowledge.
    if plain is not optimizer and scaler is None and getattr(optimizer, "scaler", None) is not None:
        reasons.append(
            f"the {type(optimizer).__name__} has a GradScaler of its own: give it to attach, too, "
            "as scaler="
        )
    return reasons


def _out_of_range(options: Options) -> list[str]:
    reasons = []
    # 1. Numbers, and the words that are allowed in their stead.
    numbers: tuple[tuple[str, Any, tuple[Any, ...]], ...] = (
        ("bucket_bytes", options.bucket_bytes, ()),
        ("slice_bytes", options.slice_bytes, (None, "auto")),
        ("lanes", options.lanes, ("auto",)),
        ("check_every", options.check_every, (None, "auto")),
    )
    for name, value, also in numbers:
        if not (isinstance(value, int) and value >= 1) and value not in also:
            reasons.append(
                f"{name}={value!r}: at least 1" + "".join(f", or {word!r}" for word in also)
            )
    # 2. Words.
    for name, word, words in (
        ("buffers", options.buffers, ("broadcast", "local")),
        ("overlap", options.overlap, ("backward", "forward", "priority")),
        ("nonfinite", options.nonfinite, POLICIES),
        ("source", options.source, options.layout.sources),
    ):
        if word not in words:
            reasons.append(f"{name}={word!r}: choose {' or '.join(map(repr, words))}")
    return reasons


def _of_updates(strategy: Strategy, optimizer: Optimizer | None) -> list[str]:
    """Refuse optimisers but a plain SGD, where `.grad` holds a whole update already.

    No optimiser of torch states whether it averages.
    """
    if not strategy.on.updates:
        return []
    if optimizer is None:
        return [
            f"{strategy.on!r} puts a whole update into .grad, which a plain SGD alone applies "
            "rightly: give the optimiser, as optimizer="
        ]
    plain = isinstance(optimizer, torch.optim.SGD) and not any(
        group["momentum"] for group in optimizer.param_groups
    )
    if plain:
        return []
    return [
        f"{strategy.on!r} puts a whole update into .grad, and {type(optimizer).__name__} would "
        "average it once more: "
        "use torch.optim.SGD(params, lr, weight_decay=…) without momentum"
    ]


def _of_settings(model: nn.Module, strategy: Strategy, options: Options) -> list[str]:
    """Refuse options that the strategy does not go with."""
    scaler, buffers = options.scaler, persistent_buffers(model)
    settings = travel.Settings(
        scaler=scaler is not None and scaler.is_enabled(),
        overlap=options.overlap,
        broadcasts=buffers[0][0] if buffers and options.buffers == "broadcast" else None,
        skips_nonfinite=options.nonfinite == "skip",
        check_every=options.check_every if isinstance(options.check_every, int) else None,
        manual=options.source == "manual",
    )
    return travel.setting_refusals(
        strategy.when, strategy.what, strategy.how, strategy.on, settings
    )


def _of_overlap(model: nn.Module, optimizer: Optimizer, options: Options) -> list[str]:
    """Return why means cannot land in the forward pass here, or why another syncer's do."""
    # 1. Another syncer that lands in the forward pass has replaced `step` already.
    if getattr(optimizer.step, "thinwire_deferred", False):
        return [
            (
                "another syncer steps this optimiser's parameters in the forward pass, a few at a "
                "time: attach that with overlap='backward'"
            )
        ]
    if options.overlap == "backward":
        return []
    # 2. Optimisers, models and hooks that cannot have a step taken bucket by bucket.
    reasons = []
    if isinstance(optimizer, torch.optim.LBFGS):
        reasons.append("LBFGS looks at all gradients at once: take overlap='backward'")
    if is_compiled(model):
        reasons.append(
            "a compiled model runs no hooks of its modules: attach the module itself, or take "
            "overlap='backward'"
        )
    if any(
        getattr(hook, "__module__", "").startswith("thinwire")
        for hook in optimizer._optimizer_step_post_hooks.values()
    ):
        reasons.append(
            "another syncer counts this optimiser's steps, and would count each part of one: take "
            "overlap='backward'"
        )
    hooks = (
        *optimizer._optimizer_step_pre_hooks.values(),
        *optimizer._optimizer_step_post_hooks.values(),
    )
    if any(not (getattr(hook, "__module__", None) or "").startswith("thinwire") for hook in hooks):
        reasons.append(
            "the optimiser has step hooks of its own, which would run for each bucket by itself: "
            "take overlap='backward'"
        )
    return [f"overlap={options.overlap!r}: {why}" for why in reasons]
