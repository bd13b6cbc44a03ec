"""List the syncers at work in this process, and refuse an attach that they rule out."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from thinwire.core import Driver, Ranks
from thinwire.engine.clock import Clock
from thinwire.engine.compiled import untraced
from thinwire.strategy import Strategy


class Attached(Protocol):
    """A syncer's strategy and driver; see `session.Session`."""

    @property
    def strategy(self) -> Strategy: ...
    @property
    def driver(self) -> Driver: ...


class Watch(Protocol):
    """A watch over a model for one syncer, as long as that is at work; see `guards.Watch`."""

    @property
    def session(self) -> Attached: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def trained(self) -> Mapping[int, nn.Parameter]:
        """Return the parameters that the syncer holds, by id."""

    def stepping(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Judge a step that some optimiser of this process is about to take."""


_lock = threading.Lock()
_watches: weakref.WeakSet[Watch] = weakref.WeakSet()
_handles: list[Any] = []  # one hook for all, which keeps no syncer alive


def living() -> list[Watch]:
    """List the watches of all syncers that have not been closed."""
    with _lock:
        return list(_watches)


def add(watch: Watch) -> None:
    """Count a syncer as at work; the first one has every optimiser of this process looked at as it
    steps."""
    with _lock:
        _watches.add(watch)
        if not _handles:
            _handles.append(register_optimizer_step_pre_hook(_stepping))


def remove(watch: Watch) -> None:
    """Count a syncer as closed."""
    with _lock:
        _watches.discard(watch)
        if not _watches and _handles:
            _handles.pop().remove()


def holders(param: nn.Parameter) -> list[Watch]:
    """List the living syncers that synchronise a parameter."""
    return [watch for watch in living() if id(param) in watch.trained]


def conflicts(
    model: nn.Module,
    strategy: Strategy,
    global_ranks: Ranks,
    world: int,
    own: Watch | None = None,
) -> list[str]:
    """Return why another syncer that is at work rules this one out; `own` is this one's watch.

    Two levels are two syncers on one model: gradients among some ranks, deltas or parameters among
    others.
    """
    for watch in living():
        if watch is own:
            continue
        # 1. Parameters that both would hold.
        names = [
            name
            for name, param in model.named_parameters()
            if param.requires_grad and id(param) in watch.trained
        ]
        other = watch.session
        # 2. Among the same ranks both would send them; on gradients both would write `.grad`,
        #    whatever their ranks.
        same_ranks = (other.driver.global_ranks, other.driver.world) == (global_ranks, world)
        same_clock = other.strategy.on.clock == strategy.on.clock
        twice = same_clock and (same_ranks or strategy.on.clock == "backward")
        if not names or not (twice or (same_ranks and world > 1)):
            continue
        return [
            f"{names[0]!r} is synchronised already, by a syncer that has not been closed "
            f"({other.strategy!r}, at step {watch.clock.step}): both "
            "would send it and step it. Close that one first, with sync.close() or `with "
            "thinwire.attach(…)`. Two levels of periods are "
            "gradients() in one group of ranks, and deltas(…) or parameters() in another"
        ]
    return []


@untraced
def _stepping(optimizer: Any, args: Any, kwargs: Any) -> None:
    for watch in living():
        watch.stepping(optimizer, args, kwargs)
