"""The first main job: a small GPT learns English on every rank, and the gradients travel as the strategy says.

It is the loop that anyone would write, with Thinwire's two lines in it: `attach` before, `check` (or `close`) after.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, nn

from thinwire.data import english
from thinwire.engine import Syncer, attach
from thinwire.strategy import Strategy
from thinwire.train.adamw import adamw, rate
from thinwire.train.batches import Batches, validation_windows
from thinwire.train.clock import landing, rounds
from thinwire.train.model import GPT, GPTConfig
from thinwire.train.result import Moment, Result, Setting
from thinwire.train.show import Show

VALIDATE_EVERY = 240
WINDOWS = 256
RECENT = 20  # batches in the loss that is shown
PROMPT = "The "


@dataclass(frozen=True)
class Job:
    """What to train, for how long and how its ranks talk; `steps` are batches to a rank, rounded up to where the strategy lands."""

    strategy: Strategy
    steps: int = 960
    batch: int = 8
    lr: float = 3e-3
    seed: int = 0
    timeout: timedelta = timedelta(minutes=2)
    model: GPTConfig = GPTConfig(layers=4, heads=4, width=96)
    windows: int = WINDOWS
    sample: int = 300


def run(job: Job, show: Show, stopped: Callable[[], bool] = lambda: False) -> Result:
    """Train, validate, sample and check; every rank of the process group calls it alike.

    Args:
        job: what to do.
        show: whom to tell.
        stopped: asked after every optimiser step whether to give up.

    Raises:
        ValueError: sizes or a strategy that do not fit this world or the text.
        ThinwireError: a rank was lost, or ranks hold different weights.
        FloatingPointError: training has diverged.
        InterruptedError: `stopped` said so.
    """
    torch.manual_seed(job.seed)
    text, held = english()
    model = GPT(job.model)
    optimizer = adamw(model, job.lr)
    windows = validation_windows(held, context=job.model.context, windows=job.windows)

    with attach(model, optimizer, job.strategy, timeout=job.timeout, seed=job.seed) as sync:
        rank, world = sync.driver.rank, sync.driver.world
        batches = Batches(text, context=job.model.context, batch=job.batch, seed=job.seed, rank=rank, world=world)
        steps = landing(job.strategy, job.steps, len(sync.buckets))
        parameters = sum(param.numel() for param in model.parameters())
        setting = Setting(job.strategy, job.model, parameters, world, steps, job.batch, job.lr, job.seed)
        show.begin(setting)

        curve: list[float] = []
        validation: list[tuple[int, float]] = []
        seconds = 0.0
        for passes in rounds(job.strategy, steps, len(sync.buckets)):
            begun = time.perf_counter()
            for step in passes:
                _, loss = model(*batches.at(step))
                (loss / len(passes)).backward()  # gradients of several passes are summed, and the mean is meant
                curve.append(loss.item())
            if not nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite():  # on gradients, at the same step on every rank
                raise FloatingPointError(f"the gradients of step {passes[-1]} are not finite: take a lower learning rate than {job.lr:g}")
            for group in optimizer.param_groups:
                group["lr"] = rate(passes[-1], steps, job.lr)
            optimizer.step()
            optimizer.zero_grad()
            seconds += time.perf_counter() - begun

            done = len(curve)
            recent = statistics.fmean(curve[-RECENT:])
            moment = Moment(done, steps, recent, seconds, done * world * job.batch * job.model.context, sync.report())
            show.step(moment)
            if passes[0] // VALIDATE_EVERY < done // VALIDATE_EVERY and done < steps:
                validation.append((done, validate(sync, windows)))
                show.validated(*validation[-1])
            if stopped():
                raise InterruptedError(f"stopped after {done} of {steps} steps")

        validation.append((steps, validate(sync, windows)))
        with sync.common_weights():
            sample = continued(model, PROMPT, job.sample, job.seed) if rank == 0 else ""
        sync.check()
    end = Moment(steps, steps, recent, seconds, moment.tokens, sync.report())  # closed: what was in the air is counted too
    result = Result(setting, end, tuple(curve), tuple(validation), sample)
    show.end(result)
    return result


@torch.no_grad()
def validate(sync: Syncer, windows: tuple[Tensor, Tensor], rows: int = 32) -> float:
    """The mean loss on `windows`, in nats a byte, of the weights that ranks have in common; every rank finds the same by itself."""
    tokens, targets = windows
    with sync.common_weights() as model:
        losses = [float(model(*batch)[1]) * len(batch[0]) for batch in zip(tokens.split(rows), targets.split(rows), strict=True)]
    return sum(losses) / len(tokens)


def continued(model: GPT, prompt: str, characters: int, seed: int) -> str:
    """The prompt and what the model makes of it."""
    tokens = torch.tensor([list(prompt.encode())])
    draws = torch.Generator().manual_seed(seed)
    return bytes(model.generate(tokens, characters, temperature=0.8, generator=draws)[0].tolist()).decode(errors="replace")
