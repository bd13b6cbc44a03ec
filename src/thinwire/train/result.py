"""What a run tells: a moment of it, while it goes on, and its result, as figures and as `run.json`."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

import thinwire
from thinwire.engine import Report
from thinwire.strategy import Strategy
from thinwire.train.model import GPTConfig


@dataclass(frozen=True)
class Moment:
    """A run after `step` of its `steps`.

    loss: the mean of rank 0's last batches, in nats a byte; seconds: spent on training, without validation; tokens: read by all ranks.
    """

    step: int
    steps: int
    loss: float
    seconds: float
    tokens: int
    report: Report

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def waited(self) -> float:
        """The share of the time in which this rank waited for the wire."""
        return self.report.exposed_s / self.seconds

    @property
    def left_s(self) -> float:
        return self.seconds / self.step * (self.steps - self.step)


@dataclass(frozen=True)
class Setting:
    """What was trained, and on what."""

    strategy: Strategy
    model: GPTConfig
    parameters: int
    world: int
    steps: int
    batch: int
    lr: float
    seed: int


@dataclass(frozen=True)
class Result:
    """A run from its end.

    curve: rank 0's loss at each step; validation: (steps, loss) pairs, the last one at the end; both in nats a byte.
    """

    setting: Setting
    end: Moment
    curve: tuple[float, ...]
    validation: tuple[tuple[int, float], ...]
    sample: str

    @property
    def nats(self) -> float:
        return self.validation[-1][1]

    @property
    def bits(self) -> float:
        return self.nats / math.log(2)

    def to_json(self) -> str:
        """Everything, with the strategy as TOML that makes it again; what is infinite (a ratio to nothing) is null."""
        report, end = self.end.report, self.end
        config = dataclasses.asdict(self.setting) | {"strategy": self.setting.strategy.to_toml(), "thinwire": thinwire.__version__}
        figures: dict[str, Any] = {
            "config": config,
            "result": {
                "validation_nats_per_byte": self.nats,
                "validation_bits_per_byte": self.bits,
                "train_s": end.seconds,
                "tokens": end.tokens,
                "tokens_per_s": end.tokens_per_s,
                "exposed_share": end.waited,
                "sample": self.sample,
            },
            "curve": {"train": self.curve, "validation": [{"steps": steps, "loss": loss} for steps, loss in self.validation]},
            "report": dataclasses.asdict(report)
            | {
                "sent_bytes": report.sent_bytes,
                "dense_bytes": report.dense_bytes,
                "ratio": report.ratio if math.isfinite(report.ratio) else None,
                "exposed_s": report.exposed_s,
            },
        }
        return json.dumps(figures, indent=1, allow_nan=False) + "\n"
