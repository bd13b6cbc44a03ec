"""Nothing is lost: stopped, killed and resumed is never stopped, bit for bit; another world goes on
with rows that nobody has read."""

from __future__ import annotations

import dataclasses
import os
import pickle
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from tests.planted import Planted
from tests.ranks import run_ranks
from tests.train.runs import MODELS, digest, kept, killed, rows_read, small, told
from thinwire.engine.checkpoint import pack_json, unpack_json
from thinwire.errors import CheckpointError
from thinwire.train.parts import read_manifest, write_manifest, write_part
from thinwire.train.result import Result

STRATEGIES = (
    "dense",
    "powersgd,rank=1",
    "topk_sgd,fraction=0.05",
    "delayed_update,tau=2",
    "fedpaq,period=3",
    "diloco,period=5",
    "streaming_diloco,period=4,fragments=2,tau=1",
    "local_sgd,period=4",
)
KILLS = 3  # benchmarks.kills does twenty, with the elastic agent
SAME = ("curve", "validation", "nats", "sent", "tokens", "weights")


def in_turn(
    rank: int, configs: list[Any], outs: list[Path], stops: list[int]
) -> list[dict[str, Any]]:
    return [
        told(rank, config, out, stop)
        for config, out, stop in zip(configs, outs, stops, strict=True)
    ]


def test_stopped_and_resumed_is_never_stopped(tmp_path: Path) -> None:
    configs, outs, stops = [], [], []
    for number, spoken in enumerate(STRATEGIES):
        config = small(strategy=spoken, steps=20, save_every=5, validate_every=7)
        whole, parts = tmp_path / f"whole-{number}", tmp_path / f"parts-{number}"
        for resume, out, stop in ((False, whole, 0), (False, parts, 8), (True, parts, 0)):
            configs.append(small(**(vars(config) | {"resume": resume})))
            outs.append(out)
            stops.append(stop)
    ran = run_ranks(2, in_turn, configs, outs, stops, timeout=240)
    for number, spoken in enumerate(STRATEGIES):
        for rank in range(2):
            whole, stopped, parts = ran[rank][3 * number : 3 * number + 3]
            assert "--resume continues from there" in stopped["stopped"], spoken
            assert parts["resumed"], spoken
            for name in SAME if rank == 0 else SAME[1:]:  # the curve that is kept is rank 0's
                assert whole[name] == parts[name], (spoken, name)


@pytest.mark.parametrize("spoken", ["muloco,period=3", "dense"])
def test_muon_goes_on_as_if_it_had_never_stopped(spoken: str, tmp_path: Path) -> None:
    config = small(strategy=spoken, steps=12, optimizer="muon")
    whole = told(0, config, tmp_path / "whole", 0)
    told(0, config, tmp_path / "parts", 5)
    parts = told(0, small(**(vars(config) | {"resume": True})), tmp_path / "parts", 0)
    assert parts["resumed"]
    assert all(whole[name] == parts[name] for name in SAME)


@pytest.mark.parametrize("seed", range(KILLS))
def test_killed_and_resumed_is_never_stopped(seed: int, tmp_path: Path) -> None:
    draws = random.Random(seed)
    config = small(
        strategy=STRATEGIES[seed % len(STRATEGIES)], steps=60, save_every=5, validate_every=20
    )
    whole, _ = run_ranks(2, told, config, tmp_path / "whole")
    victim = draws.randrange(2)
    fate = run_ranks(2, killed, config, tmp_path / "parts", draws.uniform(0.05, 1.5), victim)
    if fate[victim] == -signal.SIGKILL:
        assert "weights" in fate[1 - victim] or "lost" in fate[1 - victim]["error"]
    again, _ = run_ranks(2, told, small(**(vars(config) | {"resume": True})), tmp_path / "parts")
    for name in SAME:
        assert whole[name] == again[name], name


@pytest.mark.parametrize("spoken", ["dense", "topk_sgd,fraction=0.05", "diloco,period=4"])
@pytest.mark.parametrize("worlds", [(2, 1), (2, 3)])
def test_another_world_goes_on(spoken: str, worlds: tuple[int, int], tmp_path: Path) -> None:
    config = small(strategy=spoken, steps=20, save_every=4)
    first = run_ranks(worlds[0], told, config, tmp_path, 8)
    stopped = int(first[0]["stopped"].split("after ")[1].split(" of")[0])
    again = run_ranks(worlds[1], told, small(**(vars(config) | {"resume": True})), tmp_path)
    assert again[0]["resumed"] == (stopped,)
    assert len(again[0]["curve"]) == 20
    assert again[0]["tokens"] == (stopped * worlds[0] + (20 - stopped) * worlds[1]) * 2 * 16
    assert len({done["nats"] for done in again}) == 1


def test_no_row_is_read_twice_by_another_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = rows_read(monkeypatch)
    kept(0, small(steps=12, save_every=4, data=_letters(tmp_path)), tmp_path / "out", stop_at=5)
    done, _ = kept(
        0, small(steps=12, batch=5, resume=True, data=_letters(tmp_path)), tmp_path / "out"
    )
    assert isinstance(done, Result)
    firsts = torch.cat(
        [rows[:, 0] * 65536 + rows[:, 1] * 256 + rows[:, 2] for rows in seen]
    )  # each window of this text begins unlike others
    assert len(firsts) == 5 * 2 + 7 * 5
    assert len(firsts.unique()) == len(firsts)


def _letters(folder: Path) -> str:
    """A text whose every three letters in a row are unlike all others."""
    path = folder / "text.txt"
    if not path.exists():
        used: set[str] = set()
        text = "aa"
        draws = random.Random(0)
        while len(text) < 3000:
            free = [
                letter for letter in "abcdefghijklmnopqrstuvwxyz" if text[-2:] + letter not in used
            ]
            text += draws.choice(free)
            used.add(text[-3:])
        path.write_text(text)
    return str(path)


def test_the_objectives_resume_too(tmp_path: Path) -> None:
    for name, model in MODELS.items():
        config = small(model=model, steps=12, save_every=5)
        whole, _ = kept(0, config, tmp_path / f"whole-{name}")
        kept(0, config, tmp_path / f"parts-{name}", stop_at=7)
        parts, _ = kept(0, small(**(vars(config) | {"resume": True})), tmp_path / f"parts-{name}")
        assert isinstance(whole, Result)
        assert isinstance(parts, Result)
        assert whole.curve == parts.curve


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


def test_resume_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    done, notes = kept(0, small(resume=True), tmp_path)
    assert isinstance(done, Result)
    assert notes == [f"no checkpoint in {tmp_path} yet: starting from the first step"]


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


def test_a_shorter_run_than_the_checkpoint_is_refused(tmp_path: Path) -> None:
    kept(0, small(steps=6), tmp_path)
    with pytest.raises(CheckpointError, match="of step 6, --steps ends at 4"):
        kept(0, small(steps=4, resume=True), tmp_path)


# -- damage
# --------------------------------------------------------------------------------------------------


def newest(out: Path) -> Path:
    return max(out.glob("checkpoints/host-*/step-*"))


def flip(path: Path, at: float = 0.9) -> None:
    """One bit."""
    damaged = bytearray(path.read_bytes())
    damaged[int(at * len(damaged))] ^= 4
    path.write_bytes(damaged)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


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


# -- two hosts, each with a disk of its own
# -----------------------------------------------------------------------------


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


# -- strangers' folders
# -------------------------------------------------------------------------------------------------


def as_dcp(out: Path) -> None:
    """Make the newest checkpoint what Thinwire 0.1.0 wrote before it had a manifest."""
    folder = newest(out)
    state = load_file(folder / "rank-0.safetensors")
    state["job"] = pack_json(unpack_json(state["job"]) | {"format": 1})
    shutil.rmtree(folder)
    dcp.save(state, checkpoint_id=folder, no_dist=True)


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


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("also", ["", "manifest.json"])
def test_a_pickle_in_a_checkpoint_is_not_run(tmp_path: Path, also: str) -> None:
    kept(0, small(), tmp_path)
    if not also:
        as_dcp(tmp_path)
    for name in (".metadata", "rank-0.safetensors", also or ".metadata"):
        (newest(tmp_path) / name).write_bytes(pickle.dumps(Planted(tmp_path / "run")))
    with pytest.raises(CheckpointError, match=r"no checkpoint is whole and undamaged \(step 6: "):
        kept(0, small(resume=True), tmp_path)
    assert not (tmp_path / "run").exists()


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


def test_a_container_that_goes_by_another_name_goes_on(tmp_path: Path) -> None:
    kept(0, small(), tmp_path)
    (host,) = (tmp_path / "checkpoints").glob("host-*")
    host.rename(host.with_name("host-another"))
    done, _ = kept(0, small(steps=8, resume=True), tmp_path)
    assert isinstance(done, Result)
    assert done.resumed == (6,)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["host-another"]


def test_a_refused_resume_leaves_the_settings(tmp_path: Path) -> None:
    kept(0, small(), tmp_path)
    before = (tmp_path / "config.toml").read_text()
    with pytest.raises(CheckpointError, match="of another strategy"):
        kept(0, small(strategy="powersgd", resume=True), tmp_path)
    assert (tmp_path / "config.toml").read_text() == before
