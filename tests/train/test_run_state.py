"""What a checkpoint of a run holds, and of which other runs it is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.train.folders import as_dcp, newest
from tests.train.runs import digest, kept, small, told
from thinwire.engine.packed_json import pack_json, unpack_json
from thinwire.errors import CheckpointError
from thinwire.train.parts import read_manifest, write_manifest, write_part
from thinwire.train.result import Result


def test_local_steps_go_on_with_another_period(tmp_path: Path) -> None:
    config = small(strategy="diloco,period=4", steps=12)
    told(0, config, tmp_path / "run", 5)
    with pytest.warns(
        UserWarning, match=r"saved under every\(n=4\) and goes on under every\(n=6\)"
    ):
        again = told(
            0,
            small(**(vars(config) | {"resume": True, "strategy": "diloco,period=6"})),
            tmp_path / "run",
        )
    assert again["resumed"]
    with pytest.raises(CheckpointError, match="of another strategy"):
        kept(
            0,
            small(**(vars(config) | {"resume": True, "strategy": "diloco,period=4,lr=0.5"})),
            tmp_path / "run",
        )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": "gpt2-nano,n_layer=2,n_head=2,n_embd=16"}, "of another model"),
        ({"strategy": "dense"}, "of another strategy"),
        ({"seed": 9}, "of another seed"),
        ({"optimizer": "sgd"}, "of another optimizer"),
        ({"tokenizer": "bpe,vocab=300"}, "of another (model|text and tokenizer)"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    config = small(strategy="fedpaq,period=3")
    kept(0, config, tmp_path)
    with pytest.raises(CheckpointError, match=said):
        kept(0, small(**(vars(config) | settings | {"resume": True})), tmp_path)
    assert list((tmp_path / "checkpoints").glob("host-*/step-*")), "and left where it is"


def test_a_checkpoint_of_another_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(0, small(save_every=3), tmp_path)
    steps = list(tmp_path.glob("checkpoints/host-*/step-*"))
    monkeypatch.setattr("thinwire.train.parts.FORMAT", 3)
    with pytest.raises(
        CheckpointError, match=r"has format 2 of thinwire .*; this version reads 1 and 3"
    ):
        kept(0, small(resume=True), tmp_path)
    assert len(steps) == 2, "there is an older one"
    assert list(tmp_path.glob("checkpoints/host-*/step-*")) == steps, (
        "and nothing is taken from a newer version's run"
    )


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_checkpoint_of_the_first_format_goes_on(tmp_path: Path) -> None:
    config = small(strategy="topk_sgd,fraction=0.05", steps=12, save_every=4)
    whole, _ = kept(0, config, tmp_path / "whole")
    kept(0, config, tmp_path / "parts", stop_at=7)
    as_dcp(tmp_path / "parts")
    parts, _ = kept(0, small(**(vars(config) | {"resume": True})), tmp_path / "parts")
    assert isinstance(whole, Result)
    assert isinstance(parts, Result)
    assert parts.resumed
    assert whole.curve == parts.curve
    assert digest(tmp_path / "whole") == digest(tmp_path / "parts")


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        ({"world": 0}, "cannot be loaded: "),
        ({"rows": None, "validation": 3}, "cannot be loaded: "),
        ({"origin": None}, "cannot be loaded: "),
        ({"step": None}, "holds a checkpoint of step None"),
    ],
)
def test_a_state_that_makes_no_sense_is_refused(
    tmp_path: Path, job: dict[str, Any], reason: str
) -> None:
    kept(0, small(), tmp_path)
    folder = newest(tmp_path)
    state = load_file(folder / "rank-0.safetensors")
    state["job"] = pack_json(unpack_json(state["job"]) | job)
    manifest = read_manifest(folder)
    write_manifest(folder, dataclasses.replace(manifest, parts=(write_part(folder, 0, state),)))
    with pytest.raises(CheckpointError, match=reason):
        kept(0, small(resume=True), tmp_path)


def test_a_refused_resume_leaves_the_settings(tmp_path: Path) -> None:
    kept(0, small(), tmp_path)
    before = (tmp_path / "config.toml").read_text()
    with pytest.raises(CheckpointError, match="of another strategy"):
        kept(0, small(strategy="powersgd", resume=True), tmp_path)
    assert (tmp_path / "config.toml").read_text() == before
