"""A run over shards is the run over whole models, for every kind of model and strategy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.runs import MODELS, small
from tests.train.shards import in_turn, quietly, shared
from thinwire.engine.shards import whole_of

SAME = {
    "gpt2": {},
    "llama": {"model": MODELS["causal"]},
    "bert": {"model": MODELS["masked"]},
    "t5": {"model": MODELS["spans"]},
    "muon": {"optimizer": "muon"},
    "accumulation": {"accumulate": 2},
    "dropout": {"model": "gpt2-nano,n_layer=2,n_head=2,n_embd=16,resid_pdrop=0.5"},
    "bf16": {"precision": "bf16"},
}
LEARN = {
    "diloco": {"strategy": "diloco,period=4"},
    "local": {"strategy": "local_sgd,period=2", "accumulate": 2},
    "topk": {"strategy": "topk_sgd,fraction=0.05"},
    "powersgd": {"strategy": "powersgd,rank=1"},
    "onebit": {"strategy": "onebit_adam,start=3"},
    "muloco": {"strategy": "muloco,period=4", "optimizer": "muon"},
}


def _as_whole(world: int, shards: int, cases: dict[str, dict[str, Any]], folder: Path) -> None:
    turns = []
    for name, settings in cases.items():
        turns.append((shared(**({"shards": shards} | settings)), folder / f"{name}-shards", 0))
        turns.append((small(**({"steps": 8} | settings)), folder / f"{name}-whole", 0))
    by_rank = in_turn(world, *turns)
    for at, name in enumerate(cases):
        ours, theirs = by_rank[0][2 * at : 2 * at + 2]
        assert ours["curve"] == pytest.approx(theirs["curve"], abs=1e-3), name
        assert ours["nats"] == pytest.approx(theirs["nats"], abs=1e-3), name
        assert {done[2 * at]["nats"] for done in by_rank} == {ours["nats"]}, name


@quietly
def test_one_replica_of_two_shards_is_two_whole_ranks(tmp_path: Path) -> None:
    _as_whole(2, 2, {"gpt2": {}, "t5": {"model": MODELS["spans"]}}, tmp_path)


@pytest.mark.long
@quietly
def test_two_replicas_of_two_shards_are_four_whole_ranks(tmp_path: Path) -> None:
    _as_whole(4, 2, SAME, tmp_path)


@pytest.mark.long
@quietly
def test_strategies_learn_over_shards(tmp_path: Path) -> None:
    by_rank = in_turn(
        4, *((shared(**each, steps=24), tmp_path / name, 0) for name, each in LEARN.items())
    )
    for at, name in enumerate(LEARN):
        runs = [done[at] for done in by_rank]
        assert len({run["nats"] for run in runs}) == 1, name
        assert runs[0]["curve"][-1] < runs[0]["curve"][0] - 0.1, name


def test_the_norm_of_whole_gradients_stays_as_it_is() -> None:
    norm = torch.tensor(3.0)
    assert whole_of(norm) is norm
