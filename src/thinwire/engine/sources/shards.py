"""Take gradients of sharded parameters (FSDP2, DTensors), of which each rank has a part.

Gradients arrive averaged over the ranks of a replica, by whoever sharded it. Each rank sends its
shard to the ranks that hold the same shard of other replicas. FSDP2 runs the hooks of a parameter
when it has reduced its gradient, module by module, so buckets fly during backward.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from thinwire.core import Part, Schedule
from thinwire.engine.buckets import FlatBucket
from thinwire.engine.compiled import untraced
from thinwire.engine.landings import Landings
from thinwire.engine.layout import Named, runs_of
from thinwire.engine.replica import Replica
from thinwire.engine.session import Session
from thinwire.engine.shards import (
    fsdp_modules,
    is_sharded,
    like,
    local_of,
    offset_of,
    reshard,
)
from thinwire.engine.sources.hooks import GradientHooks, before_gradient
from thinwire.engine.steps import BackwardSteps
from thinwire.strategy import Strategy


class ShardBucket(FlatBucket):
    """A flat run of this rank's shards.

    Args:
        modules: those of FSDP2 that hold them.
    """

    def __init__(
        self, index: int, named: list[Named], wide: bool, modules: list[nn.Module]
    ) -> None:
        super().__init__(index, named, wide)
        self._modules = modules

    def part_of(self, named: Named, at: int) -> Part:
        name, param, role = named
        return Part(name, tuple(local_of(param).shape), at, role, offset_of(param) or 0)

    def values(self, i: int) -> Tensor:
        return local_of(self.params[i])

    def gradient(self, i: int) -> Tensor | None:
        param: Any = self.params[i]
        grad: Any = param.grad
        if is_sharded(grad) and grad.placements != param.placements:
            grad = grad.redistribute(placements=param.placements)
        return None if grad is None else local_of(grad)

    def give(self, i: int, grad: Tensor | None) -> None:
        self.params[i].grad = None if grad is None else like(self.params[i], grad)

    def _release(self, i: int, view: Tensor) -> None:
        """Leave `.grad` alone: FSDP holds it."""

    def set_weights(self, flat: Tensor) -> None:
        reshard(self._modules)
        super().set_weights(flat)


class ShardLayout:
    """A layout of this rank's shards, the same on all ranks: it goes by whole parameters.

    Args:
        model: has DTensors.
        replica: the ranks that hold its shards.
    """

    wrapper: nn.Module | None = None
    sources: tuple[str, ...] = ("shards", "manual")
    left_out: frozenset[str] = frozenset()

    def __init__(self, model: nn.Module, replica: Replica) -> None:
        self.replica = replica
        self._modules = fsdp_modules(model)

    def refusals(self, model: nn.Module, strategy: Strategy, overlap: str) -> list[str]:
        """Return why this model cannot be laid out by shards under this strategy."""
        reasons = []
        # 1. What FSDP2 does with the parameters.
        for group in (g for m in self._modules for g in m._get_fsdp_state()._fsdp_param_groups):
            if getattr(group.mesh_info, "replicate_mesh_dim", None) is not None:
                reasons.append(
                    "fully_shard was given a mesh with a replicate dimension, so FSDP averages "
                    "over it itself: shard over the other one, fully_shard(module, "
                    "mesh=mesh['shard'])"
                )
            if type(group.offload_policy).__name__ == "CPUOffloadPolicy":
                reasons.append(
                    "CPUOffloadPolicy brings gradients to the host after their hooks have run: "
                    "leave it out"
                )
        plain = [
            name
            for name, param in model.named_parameters()
            if param.requires_grad and not is_sharded(param)
        ]
        if self._modules and plain:
            reasons.append(
                f"{plain[0]!r} is no shard beside others that are: FSDP leaves it out, so nobody "
                "averages it over the ranks of a replica. Shard it, or freeze it"
            )
        # 2. What would let the ranks of one replica do different things.
        if strategy.when.skips_steps and self.replica.ranks > 1:
            reasons.append(
                f"{strategy.when!r} lets a rank rest by its own speed, and the ranks of a replica "
                "compute together: take every(n)"
            )
        if overlap != "backward":
            reasons.append(
                f"overlap={overlap!r}: FSDP gathers a module's parameters before the hooks by "
                "which means would land: take overlap='backward'"
            )
        return list(dict.fromkeys(reasons))

    def plan(
        self, model: nn.Module, bucket_bytes: int, when: Schedule, wide: bool
    ) -> list[FlatBucket]:
        reshard(self._modules)
        layout = runs_of(model, bucket_bytes * self.replica.ranks, when)
        return [ShardBucket(index, run, wide, self._modules) for index, run in enumerate(layout)]

    def gather(self, wanted: bool) -> None:
        """Do nothing: on local steps, too, FSDP averages over a replica."""

    def name_parameters(self) -> None:
        reshard(self._modules)

    def close(self) -> None:
        self.replica.close()


class ShardHooks(GradientHooks):
    """A source that takes each shard's gradient when it has been reduced over the replica."""

    def __init__(self, session: Session, steps: BackwardSteps) -> None:
        self._owner: dict[int, int] = {}  # the module of FSDP2 that holds a parameter, by ids
        self._calls: Counter[int] = Counter()  # of such a module, since the last step
        self._aside: set[int] = set()  # parameters whose means this pass has set aside
        self._pass = -1  # the graph task of that pass
        super().__init__(session, steps)

    def _set_means_aside(self, session: Session, landings: Landings) -> list[Any]:
        """Set landed means aside before gradients are added to them.

        FSDP2 adds gradients itself, in no node of autograd: so it is done when backward reaches
        the output of the module that holds them.
        """
        modules = fsdp_modules(session.model)
        if not modules:
            return super()._set_means_aside(session, landings)
        before = {
            id(param): before_gradient(session, landings, bucket, i)
            for bucket in session.buckets
            for i, param in enumerate(bucket.params if bucket.separate else ())
        }
        handles, inner = [], {id(module) for module in modules}
        for module in modules:
            own = _own_parameters(module, inner)
            self._owner.update((id(param), id(module)) for param in own)
            hooks = {id(param): before[id(param)] for param in own if id(param) in before}
            hook = untraced(functools.partial(self._watch_output, hooks))
            handles.append(module.register_forward_hook(hook))
        return handles

    def _watch_output(self, hooks: dict[int, Any], module: nn.Module, _: Any, output: Any) -> None:
        """Have landed means set aside when backward reaches a module's output."""
        if not torch.is_grad_enabled():
            return
        if torch._C._current_graph_task_id() < 0:  # else activation checkpointing calls it again
            self._calls[id(module)] += 1
        tensors = [each for each in tree_leaves(output) if isinstance(each, Tensor)]
        for tensor in tensors if hooks else ():
            if tensor.requires_grad:
                tensor.register_hook(untraced(functools.partial(self._reached, hooks)))

    def _reached(self, hooks: dict[int, Any], _: Tensor) -> None:
        # 1. A module may have several outputs, and may have been called several times: its means
        #    are set aside once a pass.
        task = torch._C._current_graph_task_id()
        if task != self._pass:
            self._pass = task
            self._aside.clear()
            self._after_pass(functools.partial(self._after_pass, self._hand_back))
        for key in hooks.keys() - self._aside:
            self._aside.add(key)
            hooks[key]()

    def _after_pass(self, call: Callable[[], None]) -> None:
        """Have something called when this pass is over, after all that waits for it now."""
        torch.autograd.Variable._execution_engine.queue_callback(call)

    @torch.no_grad()
    def _hand_back(self) -> None:
        """Put means back where no gradient has come: in a pass without messages, FSDP keeps its
        gradients to itself."""
        for bucket in self.session.buckets:
            for i, param in enumerate(bucket.params):
                if bucket.held[i] is not None and param.grad is None:
                    bucket.give(i, bucket.held[i])
                    bucket.given[i], bucket.held[i] = param.grad, None

    def take(self, bucket: FlatBucket, i: int) -> None:
        # FSDP reduces the gradients of each call of a module by itself: the bucket waits for all.
        if self._calls[self._owner.get(id(bucket.params[i]), 0)] > 1:
            bucket.given[i] = None
        else:
            super().take(bucket, i)

    def finish(self) -> None:
        self._calls.clear()
        super().finish()


def _own_parameters(module: nn.Module, sharded: set[int]) -> list[nn.Parameter]:
    """List the parameters of a module but those of modules in it that are sharded by themselves."""
    params = list(module.parameters(recurse=False))
    for child in module.children():
        if id(child) not in sharded:
            params += _own_parameters(child, sharded)
    return params
