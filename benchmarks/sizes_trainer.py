"""`thinwire train` on one rank, beside a bare loop and Hugging Face's Trainer: part of
`real_sizes`.

Each launch is a fresh process of one thread, which takes the same batches with the same model.
Kinds take turns, and a ratio is taken between neighbours.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.common import Neighbours
from thinwire.data.loaders.order import Reader
from thinwire.models.objective import loss as loss_of
from thinwire.optim.adamw import rate
from thinwire.train.config import TrainConfig
from thinwire.train.job import run
from thinwire.train.result import Progress
from thinwire.train.setup import Prepared, prepare_run
from thinwire.train.show import Show

BARE, FACE, DENSE, DEFAULT = "bare loop", "Hugging Face", "thinwire, dense", "thinwire, default"
KINDS = (BARE, DENSE, DEFAULT, FACE)
MODELS = {
    "llama-nano": "llama-nano",
}
WARMUP = 10


def now() -> tuple[float, float]:
    """Return the time, and the processor time of all threads of this process, in seconds."""
    return time.perf_counter(), time.process_time()


class Times(Show):
    """Note when each step ends."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def step(self, progress: Progress) -> None:
        self.ends.append(now())


def prepared(model: str, kind: str, steps: int) -> Prepared:
    """Prepare a run of few steps, without samples or validations on the way."""
    more = {"strategy": "dense"} if kind == DENSE else {}
    return prepare_run(
        TrainConfig(
            model=model, steps=steps, sample=0, validate_every=10**6, windows=8, warmup=10, **more
        )
    )


def bare(made: Prepared, steps: int) -> list[tuple[float, float]]:
    """Train as a loop of its own does: fused AdamW, clipping, a rate by step."""
    config, model = made.config, made.model()
    batches = made.tokens.batches(
        Reader(config.batch, 0, 1, (0, 0)), length=made.objective.length, seed=config.seed
    )
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )
    model.train()
    ends = []
    for step in range(steps):
        batch = made.objective.batch(batches.at(step), torch.Generator().manual_seed(step))
        loss = loss_of(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, config.lr, config.warmup, config.decay_to)
        optimizer.step()
        optimizer.zero_grad()
        float(loss.detach())
        ends.append(now())
    return ends


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """The same rows, as Hugging Face's models take them."""

    def __init__(self, made: Prepared, steps: int) -> None:
        config, length = made.config, made.objective.length
        batches = made.tokens.batches(
            Reader(config.batch, 0, 1, (0, 0)), length=length, seed=config.seed
        )
        self.rows = torch.cat([batches.at(step) for step in range(steps)])[:, :-1].long()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"input_ids": self.rows[i], "labels": self.rows[i]}


def face(made: Prepared, steps: int) -> list[tuple[float, float]]:
    """Train by Hugging Face's Trainer, with its fused AdamW and nothing else beside the steps."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    ends: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(now())

    config = made.config
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=config.batch,
            learning_rate=config.lr,
            weight_decay=config.weight_decay,
            max_grad_norm=config.clip,
            optim="adamw_torch_fused",
            lr_scheduler_type="cosine",
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(
            made.model(), arguments, train_dataset=Rows(made, steps), callbacks=[Clock()]
        )
        trainer.train()
    return ends


def launched(*args: Any) -> list[float]:
    """Return what `launch` does in a fresh process, which has no process group, as `thinwire train`
    of one rank has none."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(there, *args), daemon=True)
    process.start()
    there.close()
    seconds: list[float] = here.recv()
    process.join()
    return seconds


def _send(pipe: Any, *args: Any) -> None:
    torch.set_num_threads(1)
    pipe.send(launch(*args))


def launch(model: str, kind: str, steps: int) -> list[float]:
    """Return the median seconds of a step in this process, and those of the processor."""
    made = prepared(model, kind, steps)
    if kind == BARE:
        ends = bare(made, steps)
    elif kind == FACE:
        ends = face(made, steps)
    else:
        times = Times()
        run(made, times)
        ends = times.ends
    # Means of 8 steps: the default strategy meets every 8.
    first = range(WARMUP, len(ends) - 8, 8)
    return [statistics.median((ends[i + 8][of] - ends[i][of]) / 8 for i in first) for of in (0, 1)]


def measure(launches: int, steps: int) -> tuple[list[tuple[Any, ...]], dict[str, Any]]:
    """Return rows for a table, and the figures."""
    rows, results = [], {}
    for name, model in MODELS.items():
        seconds = np.zeros((launches, len(KINDS), 2))
        with Neighbours() as others:
            for number in range(launches):
                for turn in range(len(KINDS)):
                    at = (turn + number) % len(KINDS)
                    seconds[number, at] = launched(model, KINDS[at], steps)
        found: dict[str, Any] = {"others_cores": round(others.cores, 2)}
        for at, kind in enumerate(KINDS):
            speeds = {
                f"{what} over {other}": round(
                    float(np.median(seconds[:, KINDS.index(other), of] / seconds[:, at, of])), 3
                )
                for of, what in enumerate(("speed", "steps a processor second"))
                for other in (BARE, FACE)
            }
            wall, processor = seconds[:, at].T.round(5).tolist()
            found[kind] = {"step_s": wall, "processor_s": processor, **speeds}
            rows.append((f"{name}, {kind}", float(np.median(wall)), *speeds.values()))
        results[name] = found
    return rows, results
