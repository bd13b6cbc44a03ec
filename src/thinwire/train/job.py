"""Train a language model on every rank, with a strategy that decides what ranks send.

This is an ordinary training loop with Thinwire's two lines in it: `attach` before the loop, and
`check` (or `close`) after it.

Random numbers (masks, dropout) are keyed by (seed, step, rank), so no generator is saved. A resumed
run equals one that never stopped, bit for bit.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from thinwire.core import Driver
from thinwire.data.loaders.batches import validation_windows
from thinwire.data.loaders.order import Reader
from thinwire.data.loaders.prefetch import Prefetch
from thinwire.engine import Syncer, attach
from thinwire.engine.agree import must_agree
from thinwire.engine.shards import fsdp_modules, whole_of
from thinwire.errors import CheckpointError
from thinwire.models.objective import Batch
from thinwire.models.objective import loss as loss_of
from thinwire.models.outline import blocks_of
from thinwire.models.sample import sample
from thinwire.optim.adamw import optimizer_for, rate
from thinwire.train.clock import landing, rounds
from thinwire.train.config import check_interval
from thinwire.train.everyone import AllRanks, Everyone
from thinwire.train.progress import Account
from thinwire.train.result import Progress, Result, Setting
from thinwire.train.resume import Saver
from thinwire.train.run_state import Resumed, RunState
from thinwire.train.setup import Prepared
from thinwire.train.sharding import everyone, shard
from thinwire.train.shared_settings import settings_of_all_ranks
from thinwire.train.show import Show
from thinwire.train.validation import autocast, evaluating, held_out_loss
from thinwire.train.votes import Votes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def run(
    prepared: Prepared,
    show: Show,
    saver: Saver | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Result:
    """Train, validate, sample and check; every rank of the process group calls it alike.

    Args:
        prepared: what to train, on what, and how.
        show: receives the events of the run.
        saver: saves checkpoints, and loads the one to continue from.
        stop_requested: returns whether this rank must stop; called after every optimiser step.

    Raises:
        ThinwireError: what does not fit this world, a lost rank, or ranks that hold different
            weights.
        FloatingPointError: training has diverged.
        InterruptedError: ranks agreed to stop; what they had is saved.
    """
    config, timeout = prepared.config, timedelta(seconds=prepared.config.timeout)
    if not prepared.shards:
        return _run(prepared, prepared.model(), None, None, show, saver, stop_requested)
    with everyone(prepared.shards, timeout, prepared.device) as driver:
        model = prepared.model()
        assert prepared.outline is not None, "it has made the model"
        mesh = shard(model, prepared.outline, prepared.shards, prepared.device, config.seed)
        return _run(prepared, model, mesh, driver, show, saver, stop_requested)


def _run(
    prepared: Prepared,
    model: PreTrainedModel,
    mesh: Any,
    driver: Driver | None,
    show: Show,
    saver: Saver | None,
    stop_requested: Callable[[], bool],
) -> Result:
    """Attach and train; see `run`.

    Args:
        mesh: of a sharded model; `None`: each rank has the whole one.
        driver: of all ranks, where the syncer joins shards.
    """
    config = prepared.config
    betas = (config.beta1, config.beta2)
    optimizer = optimizer_for(
        prepared.strategy, model, config.optimizer, config.lr, betas, config.weight_decay
    )
    with attach(
        model,
        optimizer,
        prepared.strategy,
        timeout=timedelta(seconds=config.timeout),
        seed=config.seed,
        check_every=check_interval(config),
        nonfinite=config.nonfinite,
        mesh=mesh,
    ) as sync:
        if driver is None:
            whole = Run(prepared, model, optimizer, sync, sync, show, saver)
            return whole.train_to_end(stop_requested)
        all_ranks = AllRanks(sync, driver, prepared.device)
        with all_ranks.explaining():
            shards = Run(prepared, model, optimizer, sync, all_ranks, show, saver)
            return shards.train_to_end(stop_requested)


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed what dropout draws from, here and on the device.

    `torch.manual_seed` draws the same, and takes 3 % of a small model's step: it formats the stack
    for each kind of device that is not in use.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


class Run:
    """The run of one rank, from `attach` to `check`."""

    def __init__(
        self,
        prepared: Prepared,
        model: PreTrainedModel,
        optimizer: torch.optim.Optimizer,
        sync: Syncer,
        everyone: Everyone,
        show: Show,
        saver: Saver | None,
    ) -> None:
        # 1. The parts of a run, and where it ends.
        self.prepared, self.config, self.show, self.saver = prepared, prepared.config, show, saver
        self.model, self.optimizer, self.sync, self.everyone = model, optimizer, sync, everyone
        config, strategy = self.config, prepared.strategy
        self.rank, self.world = everyone.driver.rank, everyone.driver.world
        self.steps = landing(
            strategy, prepared.steps(self.world), len(sync.buckets), config.accumulate
        )
        self.windows = validation_windows(
            prepared.tokens.held, length=prepared.objective.length, windows=config.windows
        )
        self.account = Account(sync, self.world * config.batch * prepared.objective.length_read)
        self.curve: list[float] = []
        self.validation: list[tuple[int, float]] = []
        self.resumed: tuple[int, ...] = ()
        self.origin = (0, 0)  # a step, and the rows that all ranks had read before it
        # 2. Refuse ranks that differ in a setting, before the first step costs anything.
        settings = settings_of_all_ranks(prepared, model, self.steps)
        must_agree(everyone.driver, everyone.meter, settings, prepared.device)
        # 3. Continue from a checkpoint, if there is one: it moves the rows that batches begin at.
        if saver is not None:
            saver.join(everyone)
            resumed = saver.load(self.model, optimizer, sync, everyone, prepared)
            if resumed is not None:
                self._continue_from(resumed)
            saver.write_config(config)
        # 4. Batches, of which each rank reads its own rows; `origin` counts those read before,
        # perhaps in another world size.
        objective = prepared.objective
        self.batches = prepared.tokens.batches(
            Reader(config.batch, self.rank, self.world, self.origin),
            length=objective.length,
            overlap=objective.length - objective.length_read,
            seed=config.seed,
        )
        parameters = sum(param.numel() for param in model.parameters())
        self.setting = Setting(
            config,
            strategy,
            prepared.objective.name,
            parameters,
            self.world,
            self.steps,
            prepared.precision,
            prepared.device.type,
            prepared.tokens.train_tokens,
            prepared.bytes_per_token,
            prepared.shards,
        )

    def train_to_end(self, stop_requested: Callable[[], bool]) -> Result:
        """Train to the end and return the result; see `run`."""
        self.show.begin(self.setting, len(self.curve))
        self._compile()
        votes = Votes(self.everyone, self.prepared.device)
        with closing(self.batches), Prefetch(self._batch, stop=self.steps) as self.ahead:
            self._train(stop_requested, votes)
        votes.close()
        return self._end()

    def _train(self, stop_requested: Callable[[], bool], votes: Votes) -> None:
        # One optimiser step a turn; then events, in the order: validation, checkpoint, vote. None
        # of them at the last step, which `_end` validates and saves.
        for passes in rounds(
            self.prepared.strategy,
            self.steps,
            len(self.sync.buckets),
            self.config.accumulate,
            self.done,
        ):
            seconds = self._round(passes)
            done = passes[-1] + 1
            self.show.step(self.progress(done))
            if (
                passes[0] // self.config.validate_every < done // self.config.validate_every
                and done < self.steps
            ):
                self._validate(done)
            if (
                self.saver is not None
                and self.saver.saves_at(passes[0], done)
                and done < self.steps
            ):
                self._save(done)
            if votes.after(stop_requested(), seconds) and done < self.steps:
                self._save(done)
                raise InterruptedError(
                    f"stopped as asked after {done} of {self.steps} steps{self._saved()}"
                )

    @property
    def done(self) -> int:
        """The number of batches that each rank has read."""
        return len(self.curve)

    def progress(self, done: int) -> Progress:
        recent = statistics.fmean(self.curve[-20:]) if self.curve else float("nan")
        return self.account.progress(done, self.steps, recent)

    # -- a step

    def _round(self, passes: range) -> float:
        """Take one optimiser step and return the seconds that it took."""
        # 1. Forward and backward of every batch of this step.
        begun = time.perf_counter()
        self.model.train()
        losses = []
        for step in passes:
            reading = time.perf_counter()
            batch = self.ahead.at(step).to(self.prepared.device)
            self.account.input_s += time.perf_counter() - reading
            seed_dropout(self._seed(step), self.prepared.device)
            with autocast(self.prepared):
                loss = loss_of(self.model, batch)
            # Gradients of several passes add up, and the optimiser needs their mean.
            (loss / len(passes)).backward()
            losses.append(loss.detach())
        # 2. Clip, unless the strategy makes updates (signs, momenta), which this would not bound.
        clip = math.inf if self.prepared.strategy.on.updates else self.config.clip
        norm = whole_of(nn.utils.clip_grad_norm_(self.model.parameters(), clip))
        # A strategy on gradients judges the optimiser's step itself, on all ranks.
        if self.prepared.strategy.on.clock == "step" and not norm.isfinite():
            raise FloatingPointError(
                f"the gradients of step {passes[-1]} are not finite: take a lower --lr than "
                f"{self.config.lr:g}, or a longer --warmup"
            )
        # 3. The optimiser's step, in which the strategy sends.
        for group in self.optimizer.param_groups:
            group["lr"] = rate(
                passes[-1], self.steps, self.config.lr, self.config.warmup, self.config.decay_to
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        # 4. Losses are read last: on a GPU each waits for the device.
        self.curve += [float(loss) for loss in losses]
        seconds = time.perf_counter() - begun
        self.account.add(len(passes), seconds)
        return seconds

    def _batch(self, step: int) -> Batch:
        """Make this rank's batch of a step, on the CPU; a thread calls it ahead of the step."""
        generator = torch.Generator().manual_seed(self._seed(step))  # of masks
        batch = self.prepared.objective.batch(self.batches.at(step), generator)
        return batch.pinned() if self.prepared.device.type == "cuda" else batch

    def _seed(self, step: int) -> int:
        """Return the seed of all random numbers of this rank at a step."""
        return (self.config.seed * 0x9E3779B97F4A7C15 + step * self.world + self.rank) & (
            (1 << 63) - 1
        )

    def _compile(self) -> None:
        """Compile each block by itself: in a model compiled as a whole, gradient hooks would fire
        only at the end of the backward pass."""
        if not self.config.compile:
            return
        for block in blocks_of(self.model):
            block.compile()

    # -- now and then

    def _validate(self, done: int) -> None:
        self.validation = [
            (step, loss) for step, loss in self.validation if step != done
        ]  # of a run that was resumed at its end
        loss = held_out_loss(self.prepared, self.sync, self.everyone, self.windows, self.done)
        self.validation.append((done, loss))
        self.show.validated(*self.validation[-1])

    def _save(self, done: int) -> None:
        if self.saver is not None:
            self.saver.save(done, self._state())

    def _state(self) -> RunState:
        return RunState(
            self.prepared,
            self.model,
            self.optimizer,
            self.sync,
            self.everyone,
            self.account,
            self.curve,
            self.validation,
            self.resumed,
            self.origin,
        )

    def _saved(self) -> str:
        if self.saver is None:
            return ""
        self.saver.finish()
        return "; --resume continues from there"

    def _continue_from(self, resumed: Resumed) -> None:
        if resumed.step > self.steps:
            raise CheckpointError(
                f"the checkpoint is of step {resumed.step}, --steps ends at {self.steps}: ask for "
                "more steps"
            )
        self.curve, self.validation = resumed.curve, resumed.validation
        self.resumed, self.origin = (
            (*resumed.resumed, len(resumed.curve)),
            resumed.origin_for(self.world, self.config.batch),
        )
        self.account.continue_from(resumed.account, resumed.step)

    def _end(self) -> Result:
        # 1. Validate and compare weights, while ranks still answer each other.
        self._validate(self.steps)
        if self.sync.strategy.compares:
            self.sync.check()
        self.sync.flights.wait_all()  # what is still in the air has been sent, too
        self._save(self.steps)
        # 2. Costs of all ranks, after which nobody waits.
        with self.sync.common_weights() as model, evaluating(model):
            report = self.account.report()
            sent = json.dumps([report.sent_bytes, dict(report.around)]).encode()
            bytes_of = [json.loads(each) for each in self.everyone.all_gather(sent, "the end")]
            # No replica waits for another any more: a sample or a slow disk may take its time.
            # The ranks of one write the same sample, as each computes with the shards of all.
            text, written = "", {}
            if self.rank < max(self.prepared.shards, 1) and self.config.sample:
                for module in fsdp_modules(self.model)[:1]:
                    module.unshard()  # an encoder is called by itself, without the root's hooks
                text = sample(
                    self.model,
                    self.prepared.tokenizer,
                    self.config.prompt or None,
                    self.config.sample,
                    seed=self.config.seed,
                )
            if self.saver is not None:
                written = (
                    self.saver.save_model(model, self.prepared.tokenizer) | self.saver.finish()
                )
        end = self.progress(self.steps)
        return Result(
            self.setting,
            end,
            tuple(self.curve),
            tuple(self.validation),
            text,
            tuple(one for one, _ in bytes_of),
            tuple(sum(around.values()) for _, around in bytes_of),
            self.resumed,
            written,
            tuple(around for _, around in bytes_of),
        )
