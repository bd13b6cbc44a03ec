"""Say what a bench measures: contestants, networks, models, steps and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from thinwire.bench.contestants import FULL, QUICK, Contestant
from thinwire.bench.job import Job
from thinwire.bench.networks import NamedNetwork, swept


@dataclass(frozen=True)
class Study:
    """Say what is measured.

    curve, timing: fields of the jobs. rounds: of timed steps; each has `timed` steps at least, and
    whole periods.
    proof: the contestant and the network that are run whole.
    """

    world: int
    contestants: tuple[Contestant, ...]
    networks: tuple[NamedNetwork, ...]
    seeds: int
    curve: Mapping[str, Any]
    timing: Mapping[str, Any]
    timed: int
    rounds: int
    proof: tuple[str, NamedNetwork]

    def warm(self, contestant: Contestant) -> int:
        """Return the steps before any is timed.

        For contestants that communicate seldom these are their first two rounds, which open
        connections and claim memory.
        """
        return max(int(self.timing["warm"]), 2 * contestant.period if contestant.period > 1 else 0)

    def job(
        self, contestant: Contestant, seed: int, fields: Mapping[str, Any], train: str, held: str
    ) -> Job:
        """Return a contestant's job."""
        return Job(
            contestant.module,
            contestant.settings,
            train=train,
            held=held,
            seed=seed,
            **{**fields, **contestant.job},
        )


SMALL = {"vocab": 256, "context": 128, "layers": 4, "heads": 4, "width": 96}  # 0.48 M parameters
LARGE = {"vocab": 4096, "context": 64, "layers": 6, "heads": 6, "width": 384}  # 12.2 M parameters
STUDY = Study(
    world=4,
    contestants=FULL,
    networks=swept(4, (1e7, 1e8, 1e9), (0.0, 0.05)),
    seeds=3,
    # 4 ranks × 8 rows × 128 bytes × 2400 steps: 9.8 M tokens, 20 to a parameter
    curve={
        "model": SMALL,
        "batch": 8,
        "steps": 2400,
        "stop": 2400,
        "validate_every": 120,
        "warmup": 120,
        "matmul": "medium",
    },
    timing={"model": LARGE, "batch": 4, "steps": 10_000, "warm": 3, "few": 3},
    timed=15,
    rounds=2,
    proof=("local steps H=10, 4 bits", swept(4, (1e8,), (0.05,))[0]),
)
QUICK_STUDY = Study(
    world=2,
    contestants=QUICK,
    networks=swept(2, (1e8,), (0.0, 0.05)),
    seeds=1,
    curve={
        "model": SMALL | {"layers": 2, "context": 64},
        "batch": 8,
        "steps": 300,
        "stop": 300,
        "validate_every": 30,
        "warmup": 30,
    },
    timing={
        "model": LARGE | {"layers": 2, "vocab": 256, "width": 252},
        "batch": 4,
        "steps": 10_000,
        "warm": 3,
        "few": 3,
    },
    timed=10,
    rounds=2,
    proof=("local steps H=10, 4 bits", swept(2, (1e8,), (0.05,))[0]),
)
