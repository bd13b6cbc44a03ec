"""Refuse, while ranks train, what would let them drift apart in silence.

That is: parameters that no syncer holds, gradients that no backward pass brought, weights that were
loaded after attach, another wrapper around the model. When it looks:

    attach      an optimiser of other parameters (options.py); wrappers and shards inside the model
                (wrappers.py); a second syncer (living.py)
    backward    the first time: DDP or FSDP around the model; torch.compile of it as a whole
    step        of the attached optimiser: parameters that joined it, gradients set by hand, and the
                model itself at every 16th step
                of any other: parameters of the model that the syncer does not hold
    check()     all of it
"""

from __future__ import annotations

import itertools
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from thinwire.engine import compiled, living, wrappers
from thinwire.engine.clock import Clock
from thinwire.engine.landings import Landings
from thinwire.engine.layout import plain_name
from thinwire.engine.observe.checksums import checksum, checksums
from thinwire.engine.options import params_of
from thinwire.engine.session import Session
from thinwire.engine.shards import is_sharded, local_of
from thinwire.engine.uncopied import Uncopied
from thinwire.errors import AttachError, NotLandedError

LOOK_EVERY = 16
"""Steps between two looks at all of a model's parameters: 1 µs a parameter, and a step takes at
least 20."""
_AGAIN = "close the syncer and attach again"


class Watch:
    """A watch over the model and the optimisers, for one syncer.

    Args:
        session: what was attached.
        clock: where its schedule stands.
        landings: what has landed, and whether it may be applied.
    """

    def __init__(self, session: Session, clock: Clock, landings: Landings) -> None:
        self.session, self.clock, self._landings = session, clock, landings
        self.trained = {id(param): param for _, param in session.trained()}
        self._names = {id(param): name for name, param in session.trained()}
        left_out = session.options.layout.left_out
        self._held = {
            *self.trained,
            *(id(param) for _, param in session.frozen),
            *(id(p) for name, p in session.model.named_parameters() if name in left_out),
        }
        self._where = {
            id(param): (bucket, i)
            for bucket in session.buckets
            for i, param in enumerate(bucket.params)
        }
        self._strangers = itertools.count()  # steps of other optimisers
        self._steps = itertools.count()  # of the attached one
        # Other optimisers that have stepped held parameters since the attached one did.
        self._beside: set[int] = set()
        self._unheld: dict[int, str] = {}  # what the last look at the model has found
        self._alone = False  # whether a backward pass has shown that no wrapper is around
        self._stepped_at = clock.step
        self._handles: list[Any] = []
        self.paused = False
        """Whether the parameters are not this rank's own for now, but what ranks have in common."""
        # checksums of parameters that a module has loaded since the last step, before it did
        self._before: dict[int, int] = {}
        if not session.on_gradients:
            for module in session.model.modules():
                if any(id(param) in self.trained for param in module.parameters(recurse=False)):
                    self._handles.append(
                        module.register_load_state_dict_pre_hook(Uncopied(self.loading))
                    )
        self.restart()
        living.add(self)

    def close(self) -> None:
        """Stop watching."""
        living.remove(self)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    # -- what happens

    def follow(self, earlier: Watch) -> None:
        """Go on from an earlier watch of the same syncer."""
        self._stepped_at, self._alone = earlier._stepped_at, earlier._alone

    def restart(self) -> None:
        """Take the parameters as they are for where this rank goes on from: at attach, or after a
        checkpoint."""
        self._stepped_at = self.clock.step
        self._before.clear()
        self._begun = False
        self.began = [] if self.session.on_gradients else checksums(self.trained.values())
        self.began_equal = not self.clock.steps_since_sync

    def backward(self) -> None:
        """Refuse a wrapper around the model, at the first gradient.

        Raises:
            AttachError: another wrapper holds the model, too.
        """
        if self._alone:
            return
        self._alone = True
        if not dist.is_available() or not dist.is_initialized():  # which such a wrapper needs
            return
        session, layout = self.session, self.session.options.layout
        overlaps = session.on_gradients and session.options.source != "manual"
        if overlaps and session.driver.world > 1:
            compiled.warn_if_whole(session.model, layout.wrapper)
        if wrapper := wrappers.around(self.session.model, layout.wrapper):
            raise AttachError(
                f"the model is attached and in {wrapper}, too, so both would synchronise it. "
                f"{wrappers.ADVICE}; or close() the syncer and "
                f"leave it to {wrapper}"
            )

    def stepping(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Judge a step that some optimiser of this process is about to take.

        Raises:
            AttachError: it would step what the syncer does not hold.
            NotLandedError: its gradients were set by hand.
        """
        # 1. another optimiser than the attached one
        if optimizer is not self.session.given_optimizer:
            # Look at all parameters at steps 0, 1, 2, 4, 8 and 16, then at every 16th: early, when
            # models change, and seldom, as a look takes 1 µs a parameter.
            step = next(self._strangers)
            if not step & (step - 1) or not step % LOOK_EVERY:
                self._unheld = self._new_parameters()
            if self._unheld and (
                names := [
                    self._unheld[id(param)]
                    for param in params_of(optimizer)
                    if id(param) in self._unheld
                ]
            ):
                raise AttachError(self._unheld_text(names))
            if any(id(param) in self.trained for param in params_of(optimizer)):
                self._stepping_beside(optimizer)
            return
        # 2. the attached one: what it steps, and what the model has become
        self._beside.clear()
        self._refuse(self._outsiders(optimizer))
        if next(self._steps) % LOOK_EVERY == 0:
            self._refuse(self._model_changes())
        # 3. the gradients that it would apply
        closure = kwargs.get("closure") is not None or any(arg is not None for arg in args[1:])
        if (
            not closure
        ):  # a closure runs its backward pass within this step, so gradients come later
            self._refuse_gradients_by_hand(optimizer)
        self._stepped_at = self.clock.step
        self._judge(optimizer)
        self.before_step()

    def _judge(self, optimizer: Optimizer) -> None:
        """On gradients, raise where an optimiser would apply what has not landed or is not
        finite.

        Raises:
            NotLandedError: `.grad` holds this rank's own sum.
            NonFiniteError: by the policy, a mean that is not finite.
        """
        if not self.session.on_gradients:
            return
        if self.clock.accumulating:
            when = self.session.strategy.when
            every = "" if when.gap != when.period else f", once every {when.period} backward passes"
            raise NotLandedError(
                f"optimizer.step() before step {self.clock.step} of {when!r}: .grad holds this "
                "rank's own sum, no mean has landed. "
                f"Call it after the backward pass at which one lands{every}"
            )
        if aside := self._set_aside():
            raise NotLandedError(
                f"optimizer.step() at step {self.clock.step}: a backward pass that DDP did not see "
                f"added to .grad of {aside!r} after the mean had landed (in no_sync(), or not from "
                "the wrapped module's forward). Add its loss to the other, or run it first"
            )
        # From here on the mean counts as used: it may be zeroed without a warning, and a switch is
        # allowed.
        self._landings.applied = True
        self._landings.guard.before_step(optimizer)

    def _set_aside(self) -> str | None:
        """Name a parameter of DDP's whose landed mean is set aside, so that `.grad` lacks it."""
        if self.session.options.source == "ddp":
            for bucket in self.session.buckets:
                for i in range(len(bucket.held) if bucket.separate else 0):
                    if bucket.held[i] is not None:
                        return bucket.names[i]
        return None

    def _stepping_beside(self, optimizer: Optimizer) -> None:
        """Judge a step of held parameters by another optimiser than the attached one.

        Raises:
            NotLandedError: on local steps, it does so again while the attached one, by whose steps
                rounds are counted, has not stepped.
        """
        self._judge(optimizer)
        if self.session.on_gradients:
            return
        # On local steps the attached optimiser's steps are the clock. Another may step once between
        # two of them (of several optimisers the attached one is the last), but not twice.
        if id(optimizer) in self._beside:
            raise NotLandedError(
                f"a {type(optimizer).__name__} that is not attached steps the model, and the "
                "attached "
                f"{type(self.session.optimizer).__name__} does not: local rounds are counted by "
                "its "
                "steps, so no mean would ever land. "
                "Attach the optimiser that steps (of several, the last one in each step)"
            )
        self._beside.add(id(optimizer))
        self.before_step()

    def before_step(self) -> None:
        """Refuse parameters that were loaded since the last local step, when rounds have begun.

        Raises:
            AttachError: they were loaded when rounds had begun.
        """
        session, step = self.session, self.clock.step
        if session.on_gradients:
            return
        # 1. Before the first step compare all parameters, later only those that a module has
        #    loaded: checksums of a whole model cost as much as reading it.
        names = self._changed_at_start() if not self._begun else self._loaded()
        self._begun = True
        if not names:
            return
        # 2. Loaded before the first step: the run begins from there, with new anchors.
        if step == 0 and not session.by_quorum:
            self.began = checksums(self.trained.values())
            for bucket in session.buckets:
                bucket.state = session.strategy.on.init(bucket)
            return
        # 3. Loaded in a round: the difference to the anchor would be sent as progress.
        raise AttachError(
            f"{names[0]!r} was loaded, or changed by hand, at step {step}, when the round "
            "had begun from other weights: the next mean "
            "would take the difference for progress. Load the model first and then the syncer, "
            "with sync.load_state_dict(…) or "
            f"sync.load_checkpoint(…) of the same checkpoint; or {_AGAIN} after loading"
        )

    def loading(self, module: nn.Module) -> None:
        """Note the checksums of parameters that a module is about to load."""
        for param in module.parameters(recurse=False):
            if id(param) in self.trained and not self.paused:
                self._before.setdefault(id(param), int(checksum(param)))

    def problems(self) -> list[str]:
        """Return what the syncer does not hold, of the model and of its optimiser."""
        optimizer = self.session.given_optimizer
        outside = [] if optimizer is None else self._outsiders(optimizer)
        return self._model_changes() + outside

    # -- looking

    def _refuse(self, problems: list[str]) -> None:
        if problems:
            raise AttachError("; ".join(problems))

    def _new_parameters(self) -> dict[int, str]:
        """Return the parameters of the model that train and that the syncer does not hold."""
        self.session.options.layout.name_parameters()
        named = self.session.model.named_parameters()
        return {
            id(param): plain_name(name)
            for name, param in named
            if id(param) not in self._held and param.requires_grad
        }

    def _model_changes(self) -> list[str]:
        self._unheld = self._new_parameters()
        return [self._unheld_text(list(self._unheld.values()))] if self._unheld else []

    def _unheld_text(self, names: list[str]) -> str:
        params = {plain_name(name): param for name, param in self.session.model.named_parameters()}
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        before = any(map(is_sharded, self.trained.values()))
        if not before and any(is_sharded(params.get(name)) for name in names):
            return (
                f"{names[0]!r}{more}: the model was sharded after attach, so nothing would be "
                f"synchronised. {wrappers.SHARDS}"
            )
        verb = "was replaced" if names[0] in self._names.values() else "joined the model"
        return (
            f"{names[0]!r}{more} {verb} after attach: no rank would send it, and ranks would "
            f"drift apart. {_AGAIN.capitalize()}"
        )

    def _outsiders(self, optimizer: Optimizer) -> list[str]:
        """Return which parameters the optimiser steps and no syncer holds."""
        # 1. What steps and is not held; another syncer may hold it.
        new = [
            param
            for param in params_of(optimizer)
            if id(param) not in self._held and param.requires_grad
        ]
        outside = [param for param in new if not living.holders(param)]
        if not outside:
            return []
        # 2. Parameters of the model that came after attach, or of no model at all.
        names = {
            id(param): plain_name(name) for name, param in self.session.model.named_parameters()
        }
        if named := [names[id(param)] for param in outside if id(param) in names]:
            return [self._unheld_text(named)]
        return [
            f"the optimiser has been given {len(outside)} parameters that are not the model's "
            "(the first of shape "
            f"{tuple(outside[0].shape)}): no rank would send them, and ranks would drift apart. "
            f"Make them part of the model, and {_AGAIN}"
        ]

    def _refuse_gradients_by_hand(self, optimizer: Optimizer) -> None:
        clock, on_gradients = self.clock, self.session.on_gradients
        # 1. A backward pass has come since the last step and brought the gradients.
        if clock.worked or (on_gradients and (clock.step != self._stepped_at or clock.within)):
            return
        # 2. Else every gradient that is not a landed mean, and not zero, was set by hand.
        for param in params_of(optimizer):
            grad = param.grad
            if id(param) not in self.trained or not _is_values(grad):
                continue
            bucket, i = self._where[id(param)]
            if bucket.holds_landed(i):
                continue
            # torch's own checkpoints step with zeros, to make the optimiser's state.
            if not bool(local_of(grad).any()):
                continue
            raise NotLandedError(self._by_hand_text(self._names[id(param)]))

    def _by_hand_text(self, name: str) -> str:
        """Return a warning that an optimiser would apply a gradient that is this rank's own, and
        what to do."""
        step = f"optimizer.step() at step {self.clock.step}: "
        if self.session.options.source == "manual":
            return (
                f"{step}no sync.reduce() has taken the gradient of {name!r}, so it is this rank's "
                "own and ranks would drift apart; call sync.reduce() after backward() and before "
                "the step"
            )
        cure = "call loss.backward(), by which steps are counted"
        if self.session.options.source == "ddp":
            cure = "call loss.backward() on what the wrapped module returns"
        elif self.session.on_gradients:
            cure = "call sync.skip_step() before the step, which sends what is in .grad"
        return (
            f"{step}no backward pass has brought the gradient of {name!r} since the "
            "last step (torch.autograd.grad, or one set by hand?), so it is this rank's own "
            f"and ranks would drift apart; {cure}"
        )

    def _changed_at_start(self) -> list[str]:
        self._before.clear()
        before, self.began = self.began, checksums(self.trained.values())
        return [
            self._names[key]
            for key, old, new in zip(self.trained, before, self.began, strict=True)
            if old != new
        ]

    def _loaded(self) -> list[str]:
        if not self._before:
            return []
        names = [
            self._names[key]
            for key, before in self._before.items()
            if int(checksum(self.trained[key])) != before
        ]
        self._before.clear()
        return names


def _is_values(grad: Tensor | None) -> bool:
    """Return whether a gradient holds values: a stand-in for a mean that has not landed does
    not."""
    return grad is not None and (type(grad) is Tensor or is_sharded(grad))
