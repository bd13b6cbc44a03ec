"""The checkpoint to continue from: the newest that every host has whole, or an error that says why
there is none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import run_ranks
from tests.train.folders import cut_off, flip, newest
from tests.train.runs import digest, kept, small
from thinwire.errors import CheckpointError
from thinwire.train.result import Result


@pytest.mark.parametrize("harm", [flip, cut_off, Path.unlink])
@pytest.mark.parametrize("victim", ["rank-0.safetensors", "manifest.json"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_taken(
    tmp_path: Path, harm: Any, victim: str
) -> None:
    config = small(steps=8, save_every=2, strategy="topk_sgd,fraction=0.05")
    whole, _ = kept(0, config, tmp_path)
    harm(newest(tmp_path) / victim)
    again, notes = kept(0, small(**(vars(config) | {"resume": True})), tmp_path)
    assert isinstance(whole, Result)
    assert isinstance(again, Result)
    assert again.resumed == (6,)
    assert again.curve == whole.curve
    assert notes[0].startswith("the checkpoint of step 8 is passed over: ")
    assert str(newest(tmp_path) / victim) in notes[0]
    assert notes[1].startswith("going on from step 6")
    held = sorted(path.name for path in newest(tmp_path).parent.iterdir())
    assert held == [".damaged-00000008", "step-00000006", "step-00000008"]


def test_where_all_are_damaged_each_is_named(tmp_path: Path) -> None:
    kept(0, small(save_every=3), tmp_path)
    for part in tmp_path.glob("checkpoints/host-*/step-*/*.safetensors"):
        cut_off(part)
    with pytest.raises(
        CheckpointError,
        match=r"no checkpoint is whole and undamaged \(step 6: .*; step 3: .*--overwrite",
    ):
        kept(0, small(resume=True), tmp_path)
    assert len(list(tmp_path.glob("checkpoints/host-*/step-*"))) == 2, (
        "and they are left where they are"
    )


def test_a_step_that_bears_anothers_name_is_refused(tmp_path: Path) -> None:
    kept(0, small(save_every=3), tmp_path)
    last = newest(tmp_path)
    shutil.rmtree(last)
    shutil.copytree(last.with_name("step-00000003"), last)
    done, notes = kept(0, small(resume=True), tmp_path)
    assert isinstance(done, Result)
    assert done.resumed == (3,)
    assert f"{last} holds a checkpoint of step 3" in notes[0]


def on_a_host(rank: int, config: Any, outs: list[Path], stop_at: int = 0) -> dict[str, Any]:
    os.environ["GROUP_RANK"] = str(rank)
    try:
        done, notes = kept(0, config, outs[rank], stop_at)
    except CheckpointError as error:
        return {"error": str(error)}
    if isinstance(done, str):
        return {"notes": notes, "stopped": done}
    return {
        "notes": notes,
        "resumed": done.resumed,
        "nats": done.nats,
        "weights": digest(outs[rank]),
    }


def test_hosts_go_back_together_where_one_of_them_is_damaged(tmp_path: Path) -> None:
    outs = [tmp_path / "0", tmp_path / "1"]
    config = small(strategy="diloco,period=2", steps=8, save_every=2)
    whole = run_ranks(2, on_a_host, config, outs)
    flip(newest(outs[1]) / "rank-1.safetensors")
    again = run_ranks(2, on_a_host, small(**(vars(config) | {"resume": True})), outs)
    for one, other in zip(whole, again, strict=True):
        assert other["resumed"] == (6,)
        assert other["notes"][0].startswith("the checkpoint of step 8 is passed over: ")
        assert str(newest(outs[1]) / "rank-1.safetensors") in other["notes"][0]
        assert (one["nats"], one["weights"]) == (other["nats"], other["weights"])


def test_a_folder_copied_from_another_host_or_run_is_refused(tmp_path: Path) -> None:
    outs, others = [tmp_path / "0", tmp_path / "1"], [tmp_path / "2", tmp_path / "3"]
    config = small(strategy="diloco,period=2", steps=4)
    run_ranks(2, on_a_host, config, outs)
    run_ranks(2, on_a_host, config, others)
    shutil.copytree(outs[1], tmp_path / "kept")
    (host,) = outs[1].glob("checkpoints/host-*")
    resume = small(**(vars(config) | {"resume": True}))
    for source, reason in (
        (others[1], "were saved by different runs"),
        (outs[0], "both hold rank 0: one is a copy of the other"),
    ):
        shutil.rmtree(host)
        shutil.copytree(next(source.glob("checkpoints/host-*")), host)
        for each in run_ranks(2, on_a_host, resume, outs):
            assert reason in each["error"]
    shutil.rmtree(host)
    shutil.copytree(tmp_path / "kept" / "checkpoints" / host.name, host)
    assert [each["resumed"] for each in run_ranks(2, on_a_host, resume, outs)] == [(4,), (4,)]
