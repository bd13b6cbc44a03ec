"""Hold the progress of a run, and its result as figures and as `run.json`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from thinwire.engine import Report
from thinwire.engine.observe.meter import ONCE
from thinwire.strategy import Strategy
from thinwire.train.config import TrainConfig
from thinwire.train.parallel import chosen_settings
from thinwire.version import __version__


@dataclass(frozen=True)
class Progress:
    """A run after `step` of its `steps`, as one rank sees it.

    loss: the mean of rank 0's last batches, in nats a token; tokens: read by all ranks; seconds:
    spent on training, without validation and checkpoints; input_s: of these, waiting for a batch.
    """

    step: int
    steps: int
    loss: float
    seconds: float
    tokens: int
    report: Report
    input_s: float = 0.0
    begun: int = 0
    """The step at which this process took the run up; the speed is of what it did itself."""
    tokens_before: int = 0
    seconds_before: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        return (self.tokens - self.tokens_before) / max(self.seconds - self.seconds_before, 1e-9)

    @property
    def remaining_s(self) -> float:
        here = self.seconds - self.seconds_before
        return here / max(self.step - self.begun, 1) * (self.steps - self.step)

    @property
    def dense_bytes(self) -> float:
        """Return the bytes that this rank would have sent by dense float32 all-reduces after every
        batch (a report counts one for each step of its clock)."""
        return self.report.dense_bytes / max(self.report.steps, 1) * self.step

    @property
    def time_fractions(self) -> dict[str, float]:
        """Fractions of the time: input, exposed (waiting for the wire) and compute sum to 1; encode
        and wire run beside compute."""
        seconds = max(self.seconds, 1e-9)
        waits = {"input": self.input_s / seconds, "exposed": self.report.exposed_s / seconds}
        beside = {
            "encode": sum(row.encode_s for row in self.report.rows) / seconds,
            "wire": sum(row.wire_s for row in self.report.rows) / seconds,
        }
        return {"compute": max(0.0, 1 - sum(waits.values()))} | waits | beside


@dataclass(frozen=True)
class Setting:
    """The model, data and sizes of a run."""

    config: TrainConfig
    strategy: Strategy
    objective: str
    parameters: int
    world: int
    steps: int
    precision: str
    device: str
    train_tokens: int
    bytes_per_token: float
    shards: int = 0
    """How many ranks hold a replica together; 0: each holds its own."""

    @property
    def ranks(self) -> str:
        """Say how many ranks there are, and how they share out replicas."""
        count = "1 rank" if self.world == 1 else f"{self.world} ranks"
        if not self.shards:
            return count
        replicas = self.world // self.shards
        return f"{count} ({replicas} {'replica' if replicas == 1 else 'replicas'} of {self.shards})"

    @property
    def holders(self) -> str:
        """Say who must hold the same weights."""
        return f"{self.world // self.shards} replicas" if self.shards else f"{self.world} ranks"


@dataclass(frozen=True)
class Result:
    """A finished run.

    curve: rank 0's loss at each step; validation: (steps, loss) pairs, the last one at the end;
    both in nats a token that counts.
    sent_bytes, around_bytes: by rank: in the schedule, and around it (start-up, votes, validation,
    the check).
    """

    setting: Setting
    end: Progress
    curve: tuple[float, ...]
    validation: tuple[tuple[int, float], ...]
    sample: str
    sent_bytes: tuple[float, ...]
    around_bytes: tuple[float, ...]
    resumed: tuple[int, ...] = ()
    """The steps at which the run was resumed."""
    paths: dict[str, str] = field(default_factory=dict)
    around: tuple[dict[str, float], ...] = ()
    """Of `around_bytes`, what each cause has sent."""

    @property
    def nats(self) -> float:
        return self.validation[-1][1]

    @property
    def bits_per_byte(self) -> float | None:
        """Return nats / ln 2 / (bytes per token), where every token is predicted; `None` for masks
        and spans."""
        return (
            self.nats / math.log(2) / self.setting.bytes_per_token
            if self.setting.objective == "causal"
            else None
        )

    @property
    def dense_bytes(self) -> float:
        """Return the bytes that dense float32 all-reduces after every batch would have sent, from
        all ranks."""
        return self.end.dense_bytes * self.setting.world

    @property
    def ratio(self) -> float | None:
        """Dense bytes divided by the bytes of the schedule; `None` if nothing was sent."""
        return self.dense_bytes / sum(self.sent_bytes) if sum(self.sent_bytes) else None

    @property
    def ratio_all(self) -> float | None:
        """Dense bytes divided by all bytes sent, start-up and checks included."""
        everything = sum(self.sent_bytes) + sum(self.around_bytes)
        return self.dense_bytes / everything if everything else None

    @property
    def ratio_running(self) -> float | None:
        """Dense bytes divided by all bytes sent after the start: schedule, validation, votes and
        checks."""
        going = sum(self.sent_bytes) + sum(
            sum(part for name, part in each.items() if name not in ONCE) for each in self.around
        )
        return self.dense_bytes / going if going else None

    def most_around(self, once: bool) -> dict[str, float]:
        """Return the bytes of each cause outside the schedule, of the rank that sent most: once at
        the start, or during the run."""
        names = dict.fromkeys(
            name for each in self.around for name in each if (name in ONCE) == once
        )
        most = {name: max(each.get(name, 0.0) for each in self.around) for name in names}
        return dict(sorted(most.items(), key=lambda part: -part[1]))

    def figures(self) -> dict[str, Any]:
        """Return everything as JSON values; what does not exist (a ratio to nothing) is null."""
        setting, end, report = self.setting, self.end, self.end.report
        return {
            "thinwire": __version__,
            "config": chosen_settings(setting.config),
            "strategy": setting.strategy.to_toml(),
            "objective": setting.objective,
            "parameters": setting.parameters,
            "world": setting.world,
            **({"shards": setting.shards} if setting.shards else {}),
            "precision": setting.precision,
            "device": setting.device,
            "train_tokens": setting.train_tokens,
            "result": {
                "validation_nats_per_token": self.nats,
                "validation_bits_per_byte": self.bits_per_byte,
                "steps": end.step,
                "tokens": end.tokens,
                "train_s": end.seconds,
                "tokens_per_s": end.tokens_per_s,
                "sent_bytes": list(self.sent_bytes),
                "around_bytes": list(self.around_bytes),
                "around": [dict(each) for each in self.around],
                "dense_bytes": self.dense_bytes,
                "ratio": self.ratio,
                "ratio_all": self.ratio_all,
                "ratio_running": self.ratio_running,
                "time_shares": end.time_fractions,
                "resumed_at": list(self.resumed),
                "sample": self.sample,
            },
            "curve": {
                "train": list(self.curve),
                "validation": [{"step": step, "nats": nats} for step, nats in self.validation],
            },
            "buckets": [asdict(row) for row in report.rows],
            "places": self.paths,
        }

    def to_json(self) -> str:
        return json.dumps(self.figures(), indent=1, allow_nan=False) + "\n"
