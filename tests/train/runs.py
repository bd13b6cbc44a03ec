"""Small runs for the tests of the job: a model of 6,000 parameters on the bundled text."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch

from thinwire.text.output import CommandOutput
from thinwire.train import votes
from thinwire.train.config import TrainConfig
from thinwire.train.folder import RunFolder
from thinwire.train.job import run
from thinwire.train.result import Result
from thinwire.train.resume import Saver
from thinwire.train.setup import prepare_run
from thinwire.train.show import Show

SMALL = TrainConfig(
    model="gpt2-nano,n_layer=1,n_head=2,n_embd=16",
    context=16,
    batch=2,
    steps=6,
    windows=8,
    sample=4,
    strategy="dense",
    save_every=0,
    timeout=20,
)
SHAPE = "num_hidden_layers=1,hidden_size=16,intermediate_size=32,num_attention_heads=2"
MODELS = {
    "causal": f"llama-nano,{SHAPE},num_key_value_heads=2",
    "masked": f"bert-nano,{SHAPE}",
    "spans": "t5-nano,num_layers=1,num_decoder_layers=1,d_model=16,d_ff=32,num_heads=2,d_kv=8",
}


def small(**settings: Any) -> TrainConfig:
    return dataclasses.replace(SMALL, **settings)


def result(config: TrainConfig, show: Show | None = None) -> Result:
    """A run that keeps nothing."""
    return run(prepare_run(config), show or Show())


class Stopping(Show):
    """Stops the run where it is told to."""

    def __init__(self, at: int) -> None:
        self.at, self.now = at, False

    def step(self, moment: Any) -> None:
        self.now = self.now or moment.step >= self.at


class Noted(CommandOutput):
    """Keeps what would be told on standard error."""

    def __init__(self) -> None:
        super().__init__("thinwire train", as_json=False)
        self.notes: list[str] = []

    def note(self, text: str, by_rank: int = 0) -> None:
        self.notes.append(text)


def kept(
    rank: int, config: TrainConfig, out: Path, stop_at: int = 0
) -> tuple[Result | str, list[str]]:
    """A run that keeps checkpoints in a folder; what came of it, and what it noted."""
    output = Noted()
    folder = RunFolder(out)
    if rank == 0:
        folder.acquire(resume=config.resume, overwrite=False)
    saver = Saver(
        folder, every=config.save_every, keep=config.keep, resume=config.resume, output=output
    )
    show = Stopping(stop_at) if stop_at else Show()
    votes.SECONDS = 0.0 if stop_at else 1.0  # these runs are over before a second is
    try:
        done: Result | str = run(
            prepare_run(config), show, saver, lambda: getattr(show, "now", False)
        )
    except InterruptedError as error:
        done = str(error)
    finally:
        folder.close()
    return done, output.notes


def told(rank: int, config: TrainConfig, out: Path, stop_at: int = 0) -> dict[str, Any]:
    """The same as plain values, for a rank in a process of its own."""
    done, notes = kept(rank, config, out, stop_at)
    if isinstance(done, str):
        return {"stopped": done, "notes": notes}
    return {
        "notes": notes,
        "curve": done.curve,
        "validation": done.validation,
        "nats": done.nats,
        "resumed": done.resumed,
        "sent": done.sent_bytes,
        "tokens": done.end.tokens,
        "weights": digest(out) if rank == 0 else None,
    }


def killed(
    rank: int, config: TrainConfig, out: Path, after_s: float, victim: int
) -> dict[str, Any]:
    """As `told`, but one rank is killed after a while; the others find out."""
    if rank == victim:
        threading.Thread(target=_kill, args=(after_s,), daemon=True).start()
    try:
        return told(rank, config, out)
    except Exception as error:  # the survivors' story
        return {"error": str(error)}


def _kill(after_s: float) -> None:
    time.sleep(after_s)
    os.kill(os.getpid(), signal.SIGKILL)


def digest(out: Path) -> str:
    return hashlib.sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest()


def rows_read(monkeypatch: Any) -> list[torch.Tensor]:
    """Every window that this process trains on from now on; those made ahead and not asked for do
    not count."""
    from thinwire.data import Batches, Prefetch

    made: dict[int, torch.Tensor] = {}
    seen: list[torch.Tensor] = []
    make, ask = Batches.at, Prefetch.at

    def at(self: Batches, step: int) -> torch.Tensor:
        made[step] = make(self, step)
        return made[step]

    def asked(self: Prefetch[Any], step: int) -> Any:
        batch = ask(self, step)
        seen.append(made[step])
        return batch

    monkeypatch.setattr(Batches, "at", at)
    monkeypatch.setattr(Prefetch, "at", asked)
    return seen


__all__ = [
    "MODELS",
    "SMALL",
    "Stopping",
    "digest",
    "kept",
    "killed",
    "result",
    "rows_read",
    "small",
    "told",
]
