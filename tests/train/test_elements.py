"""What a checkpoint has by elements: from shards to others, and to whole models and back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.train.shards import in_turn, quietly, shared
from thinwire.errors import CheckpointError
from thinwire.train.elements import filled, needed_by, runs_of, saved

SAME = ("curve", "validation", "nats", "sent", "tokens", "weights")


def test_a_tensor_is_put_together_from_runs() -> None:
    whole = torch.arange(12.0).view(4, 3)
    state = {
        "model[0:6].a": whole[:2].flatten(),
        "model[6:12].a": whole[2:].flatten(),
        "optimizer[0:6].exp_avg.a": whole[:2].flatten(),
        "sync.all|meta": torch.zeros(1),
    }
    runs = runs_of("model", state)
    assert runs.keys() == {"a"}
    assert torch.equal(filled(runs["a"], torch.empty(4, 3), "a"), whole)
    assert runs_of("optimizer", state).keys() == {"exp_avg.a"}
    with pytest.raises(CheckpointError, match="elements of 'a' are missing"):
        filled(runs["a"][1:], torch.empty(4, 3), "a")
    with pytest.raises(CheckpointError, match="more elements than it has"):
        filled(runs["a"], torch.empty(3), "a")


def test_whole_tensors_keep_their_keys_and_are_all_needed() -> None:
    key, copy = saved("model", "head.weight", torch.ones(2, 2))
    assert (key, copy.shape) == ("model.head.weight", (2, 2))
    needs = needed_by(nn.Linear(2, 2))
    assert all(map(needs, ("model.weight", "model[0:2].weight", "sync.rank0|on/x|0:2|weight")))


@pytest.mark.long
@quietly
def test_stopped_and_resumed_is_never_stopped(tmp_path: Path) -> None:
    config = shared(strategy="topk_sgd,fraction=0.05", steps=10, save_every=4)
    again = dataclasses.replace(config, resume=True)
    ran = in_turn(
        2,
        (config, tmp_path / "whole", 0),
        (config, tmp_path / "parts", 6),
        (again, tmp_path / "parts", 0),
    )
    whole, stopped, parts = ran[0]
    assert "--resume continues from there" in stopped["stopped"]
    assert parts["resumed"]
    assert all(whole[name] == parts[name] for name in SAME)


@pytest.mark.long
@quietly
@pytest.mark.parametrize("spoken", ["dense", "fedpaq,period=2", "topk_sgd,fraction=0.1"])
def test_a_run_goes_on_over_other_shards(spoken: str, tmp_path: Path) -> None:
    config = shared(strategy=spoken, steps=12, save_every=4, shards=2)
    whole = dataclasses.replace(config, parallel="ddp", shards=0)
    # 1. 2 x 2, stopped; then 1 x 4, 4 x 1, and whole models; and back to 2 x 2.
    for name, first, then in (
        ("one-replica", config, dataclasses.replace(config, shards=4)),
        ("four-replicas", config, dataclasses.replace(config, shards=1)),
        ("whole", config, whole),
        ("back", whole, config),
    ):
        folder = tmp_path / name
        ran = in_turn(4, (first, folder, 6), (dataclasses.replace(then, resume=True), folder, 0))
        done = ran[0][1]
        assert done["resumed"], name
        assert len(done["curve"]) == 12
        assert len({rank[1]["nats"] for rank in ran}) == 1
        # 2. Dense forgets nothing: each is the run that never stopped, up to the order of sums.
        if spoken == "dense":
            (never,) = in_turn(4, (config, tmp_path / f"never-{name}", 0))[0]
            assert done["nats"] == pytest.approx(never["nats"], abs=1e-4), name
