"""Give a training loop the `Sync` of a rank in rounds that close with a quorum."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from torch import Tensor, nn
from torch.optim import Optimizer

from thinwire.core import Driver, Ranks
from thinwire.engine import agree, checkpoint, saved
from thinwire.engine.bound import Bound
from thinwire.engine.buckets import FlatBucket
from thinwire.engine.clock import Clock
from thinwire.engine.flights import Flights
from thinwire.engine.guards import Watch
from thinwire.engine.landings import Landings
from thinwire.engine.lane_plan import LanePlan
from thinwire.engine.observe.meter import Meter, Report
from thinwire.engine.options import Options
from thinwire.engine.pace import Pace
from thinwire.engine.session import Session
from thinwire.engine.sources import OptimizerSteps
from thinwire.engine.weights import Weights
from thinwire.errors import AttachError, CheckpointError, DisagreementError, FlightError
from thinwire.quorum.entries import read_json
from thinwire.quorum.rendezvous_store import RendezvousStore
from thinwire.quorum.rounds import Limits, Rounds
from thinwire.strategy import Strategy


class QuorumSyncer:
    """A strategy at work in rounds that close with a quorum: what `thinwire.join` returns. Close
    it, or use it as a context.

    `step` is H times the rounds that have closed, and the local steps since; a rank that was late
    jumps ahead. `while sync.step < steps` ends a loop alike on all ranks.
    """

    def __init__(self, session: Session, store: RendezvousStore, limits: Limits) -> None:
        how, driver = session.strategy.how, session.driver
        self.session, self.store, self.clock = session, store, Clock()
        self.pace: Pace | None = None  # ranks do not rest
        self.flights = Flights(session, Bound(how, how, LanePlan(1, None), None))
        self.weights = Weights(driver, session.meter, how, session.device)
        self.watch = Watch(session, self.clock, Landings(session, self.flights))
        self.rounds = Rounds(session, self.clock, self.watch, store, limits)
        self.source = OptimizerSteps(session, self.rounds)  # last, as it hooks on to the model

    # -- facts

    @property
    def model(self) -> nn.Module:
        return self.session.model

    @property
    def optimizer(self) -> Optimizer:
        return self.session.optimizer

    @property
    def strategy(self) -> Strategy:
        return self.session.strategy

    @property
    def driver(self) -> Driver:
        return self.session.driver

    @property
    def buckets(self) -> Sequence[FlatBucket]:
        return self.session.buckets

    @property
    def meter(self) -> Meter:
        return self.session.meter

    @property
    def options(self) -> Options:
        return self.session.options

    @property
    def step(self) -> int:
        """Return the local steps of the rounds that have closed, and of the one under way."""
        return self.clock.step

    @property
    def steps_since_sync(self) -> int:
        """Return the local steps since the last round."""
        return self.clock.steps_since_sync

    @property
    def accumulating(self) -> bool:
        """Return false: gradients are this rank's own."""
        return False

    @property
    def version(self) -> int:
        """Return of how many rounds this rank's anchor has the contributions."""
        return self.rounds.anchor.version

    @property
    def members(self) -> Ranks:
        """Return the ranks that the last of these rounds counted."""
        return self.rounds.anchor.members

    # -- what users call

    def weigh(self, weight: float) -> None:
        """Set this rank's weight for the rounds to come; it travels with each contribution.

        Raises:
            AttachError: it is negative, not finite, or above what the run allows.
        """
        if not (math.isfinite(weight) and weight >= 0):
            raise AttachError(f"weigh({weight}): a weight is finite, and at least 0")
        if weight > self.store.bounds.weight:
            raise AttachError(
                f"weigh({weight:g}): the ranks of this run have agreed on at most "
                f"{self.store.bounds.weight:g}. Give all of them thinwire.join(max_weight=…)"
            )
        self.rounds.weight = float(weight)

    def skip_step(self) -> None:
        """Count a local step without one of this rank's own."""
        self.source.skip()

    def check(self) -> None:
        """Compare the anchor with that of every rank that has checked the same version of it.

        Raises:
            DisagreementError: on the later of two ranks whose anchors differ; it names the first
                parameter that does.
        """
        # 1. hash the anchor and the frozen parameters
        named = [
            (part.name, self.rounds.anchor_of(bucket)[part.begin : part.end])
            for bucket in self.buckets
            for part in bucket.spec.parts
        ]
        named += self.session.frozen
        mine = [agree.hash_of(tensor).hex() for _, tensor in named]
        # 2. post them; the first rank's stay
        key = f"hash/{self.store.start}/{self.version}"
        first = read_json(
            self.store.set_once(key, json.dumps([self.driver.rank, *mine])), most=1 << 26
        )
        if not (isinstance(first, list) and len(first) == 1 + len(mine)):
            raise FlightError(
                f"check(): the store holds under {key!r} what no rank of this run writes: "
                "something else writes there"
            )
        # 3. compare
        for (name, _), own, other in zip(named, mine, first[1:], strict=True):
            if own != other:
                raise DisagreementError(
                    f"{name!r} differs after {self.version} rounds: rank {self.driver.rank} has "
                    f"not rank {first[0]}'s bits"
                )

    @contextmanager
    def common_weights(self) -> Iterator[nn.Module]:
        """Give the model the anchor's weights inside the block: to validate, to save."""
        own = [bucket.weights() for bucket in self.buckets]
        # The watch must not take these weights for a load of the model.
        self.watch.paused = True
        for bucket in self.buckets:
            bucket.set_weights(self.rounds.anchor_of(bucket).to(bucket.device))
        try:
            yield self.model
        finally:
            self.watch.paused = False
            for bucket, weights in zip(self.buckets, own, strict=True):
                bucket.set_weights(weights)

    def report(self) -> Report:
        """Return bytes and seconds so far, by bucket and stage."""
        return self.meter.report()

    # -- saving

    def state_dict(self) -> dict[str, Tensor]:
        """Return residuals, anchor, outer and private state, as tensors only."""
        return checkpoint.save(self)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a state, after the model and the optimiser have been loaded.

        Raises:
            CheckpointError: it is of another strategy or model, or older than the run in the store.
        """
        checkpoint.load(self, state)

    def load_checkpoint(self, folder: str | Path, key: str = "sync") -> None:
        """Continue from a DCP folder in which a syncer was saved as `key`.

        Raises:
            CheckpointError: there is no such state, or as in `load_state_dict`.
        """
        checkpoint.load(self, saved.read_folder(folder, key))

    def resume(self, step: int, steps_since_sync: int) -> None:
        """Start the run where a checkpoint ends; or take its newest anchor, where it starts with a
        newer one or has gone on.

        Raises:
            CheckpointError: rounds have closed that went on from something older.
        """
        self.clock.restart(step, steps_since_sync)
        self.watch.restart()
        # The store may hold a run already: continue it here, or take its anchor.
        saved = step // self.strategy.when.period
        if not self.rounds.restart(saved):
            return
        if saved > self.version:
            raise CheckpointError(
                f"this state is of round {saved}, and the run in this store has come to round "
                f"{self.version} without it. Load the newest state in a new store, before the "
                "first round closes; or join this run without a state"
            )
        warnings.warn(
            f"rank {self.driver.rank} loaded round {saved}, and the run in this store goes on from "
            f"round {self.version}: it takes that anchor, and keeps its optimiser and residuals",
            stacklevel=4,
        )

    # -- the end

    def close(self) -> None:
        """Leave the run, and leave the model and the optimiser as they were before."""
        if not self.source.active:
            return
        self._unhook()
        self.driver.close()
        steps = self.clock.step - self.clock.began_at
        if steps > 0 and not self.rounds.closed_any:
            warnings.warn(
                f"closed after {steps} steps without a mean over ranks: {self.strategy.when!r} is "
                "longer than the run, so each rank keeps its own parameters. Take a shorter "
                "period, or train for longer",
                stacklevel=2,
            )

    def __enter__(self) -> QuorumSyncer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._unhook()
            self.driver.abandon(error)

    def _unhook(self) -> None:
        self.source.close()
        self.watch.close()
