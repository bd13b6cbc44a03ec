"""Runs of several ranks that share out a model, in turn in the same processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import run_ranks
from tests.train.runs import small, told
from thinwire.train.config import TrainConfig


def shared(**settings: Any) -> TrainConfig:
    """A small run of two shards a replica."""
    return small(**({"parallel": "fsdp", "shards": 2, "steps": 8} | settings))


def _in_turn(rank: int, world: int, turns: list[tuple[TrainConfig, Path, int]]) -> list[Any]:
    os.environ |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    return [told(rank, *turn) for turn in turns]


def in_turn(world: int, *turns: tuple[TrainConfig, Path, int], timeout: float = 240) -> list[Any]:
    """What came of each run, by rank: settings, folder, and where to stop (0: at the end)."""
    return run_ranks(world, _in_turn, world, list(turns), timeout=timeout)


quietly = pytest.mark.filterwarnings("ignore")
