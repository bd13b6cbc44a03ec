"""Define what a contestant is given, and what it must offer: the same model, text, batches and
optimiser for all.

A contestant is a module with `ABOUT` (a line), `REQUIRES` (what pip installs for it, pinned; empty
where thinwire's own environment does) and

    build(job: Job, place: RankEnv) -> Trainer

It runs in its own processes, one a rank, under torchrun's environment variables, and talks through
its own library's public interface.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from thinwire import env
from thinwire.models.gpt import GPT, GPTConfig
from thinwire.optim.adamw import adamw, rate


@dataclass(frozen=True)
class Job:
    """One run of a contestant.

    contestant: a module of `thinwire.bench.rivals`, or `thinwire`; settings: its own, such as
    {"period": 30}.
    train, held: .npy files of token numbers. batch: rows to a rank and step. steps: of the whole
    schedule; stop: where to end.
    warm: steps before anything is timed or counted. few: where steps take over `slow_s`, so many
    timed ones are enough (0: all are done).
    validate_every: steps between validations; 0: none. windows: held-out rows of one.
    matmul: torch's word for the precision of float32 products. "medium" has oneDNN multiply, where
    there is AVX-512 twice as fast as MKL on other makers' processors: in float32, but where the
    processor has products of bf16 in tiles (AMX).
    """

    contestant: str
    settings: dict[str, Any]
    model: dict[str, int]
    train: str
    held: str
    seed: int = 0
    batch: int = 8
    steps: int = 100
    stop: int = 100
    warm: int = 0
    few: int = 0
    slow_s: float = 5.0
    validate_every: int = 0
    windows: int = 256
    lr: float = 3e-3
    warmup: int = 100
    decay_to: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    timeout: float = 300.0
    matmul: str = "highest"

    @staticmethod
    def read(path: Path) -> Job:
        """Read a job from its JSON file."""
        fields = json.loads(path.read_text())
        return Job(**fields | {"betas": tuple(fields["betas"])})

    def write(self, path: Path) -> None:
        """Into a JSON file."""
        path.write_text(json.dumps(asdict(self)))

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: a linear warm-up, then a cosine down to decay_to ·
        lr."""
        return rate(step, self.steps, self.lr, self.warmup, self.decay_to)

    def new_model(self) -> GPT:
        """Build the model: the same bits on every rank, for every contestant."""
        torch.manual_seed(self.seed)
        return GPT(GPTConfig(**self.model))  # type: ignore[arg-type]  # sizes are ints, no switch given

    def new_optimizer(self, model: nn.Module) -> torch.optim.AdamW:
        """Build AdamW; matrices decay, vectors do not."""
        return adamw(model, self.lr, self.betas, self.weight_decay)


@dataclass(frozen=True)
class RankEnv:
    """Hold rank, world and rank 0's address, from the environment that torchrun sets."""

    rank: int = field(default_factory=lambda: int(env.needed("RANK")))
    world: int = field(default_factory=lambda: int(env.needed("WORLD_SIZE")))
    address: str = field(default_factory=lambda: env.needed("MASTER_ADDR"))
    port: int = field(default_factory=lambda: int(env.needed("MASTER_PORT")))


class Trainer(Protocol):
    """A contestant at work."""

    def step(self, tokens: Tensor, targets: Tensor, lr: float) -> float:
        """Train on one batch (rows, context) int64 of this rank, and return its loss.

        Forward, backward, clipping, communication, and an update at rate `lr`.
        """
        ...

    def common(self) -> AbstractContextManager[nn.Module]:
        """Yield the model that a user would save now, as the library gives it.

        All ranks call it, since some libraries average their weights for it.
        """
        ...

    def split(self) -> dict[str, float]:
        """Return seconds so far of `encode_s` and `exposed_s`, and `metered_bytes`.

        It is empty where the library does not measure them.
        """
        ...

    def close(self) -> None:
        """Wait for what is in flight, and close connections."""
        ...


def batches(job: Job, rank_env: RankEnv) -> Any:
    """Return a function from a step to its rows: (batch, context + 1) int64.

    They are drawn from the text by (seed, step, rank).
    """
    text = np.load(job.train, mmap_mode="r")
    length = job.model["context"] + 1

    def at(step: int) -> Tensor:
        draw = np.random.default_rng([job.seed, step, rank_env.rank])
        begins = draw.integers(0, len(text) - length, job.batch)
        return torch.from_numpy(
            np.stack([text[begin : begin + length] for begin in begins]).astype(np.int64)
        )

    return at


def validation(job: Job) -> list[Tensor]:
    """Return held-out rows, evenly spread, in batches of 32."""
    text = np.load(job.held, mmap_mode="r")
    length = job.model["context"] + 1
    begins = np.linspace(0, len(text) - length, job.windows).astype(int)
    rows = torch.from_numpy(
        np.stack([text[begin : begin + length] for begin in begins]).astype(np.int64)
    )
    return list(rows.split(32))
