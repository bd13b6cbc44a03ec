"""Nothing is lost: stopped, killed and resumed is never stopped, bit for bit; another world goes on
with rows that nobody has read."""

from __future__ import annotations

import pickle
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.planted import Planted
from tests.ranks import run_ranks
from tests.some import some
from tests.train.folders import as_dcp, newest
from tests.train.runs import MODELS, kept, killed, rows_read, small, told
from thinwire.errors import CheckpointError
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


@pytest.mark.parametrize("strategies", some([list(STRATEGIES[1::2]), list(STRATEGIES[::2])], 1))
def test_stopped_and_resumed_is_never_stopped(strategies: Any, tmp_path: Path) -> None:
    configs, outs, stops = [], [], []
    for number, spoken in enumerate(strategies):
        config = small(strategy=spoken, steps=10, save_every=4, validate_every=5)
        whole, parts = tmp_path / f"whole-{number}", tmp_path / f"parts-{number}"
        for resume, out, stop in ((False, whole, 0), (False, parts, 7), (True, parts, 0)):
            configs.append(small(**(vars(config) | {"resume": resume})))
            outs.append(out)
            stops.append(stop)
    ran = run_ranks(2, in_turn, configs, outs, stops, timeout=240)
    for number, spoken in enumerate(strategies):
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


@pytest.mark.parametrize("seed", some(range(KILLS), 1))
def test_killed_and_resumed_is_never_stopped(seed: int, tmp_path: Path) -> None:
    draws = random.Random(seed)
    config = small(
        strategy=STRATEGIES[seed % len(STRATEGIES)],
        steps=40,
        save_every=5,
        validate_every=20,
        timeout=8,
    )
    whole, _ = run_ranks(2, told, config, tmp_path / "whole")
    victim = draws.randrange(2)
    fate = run_ranks(2, killed, config, tmp_path / "parts", draws.uniform(0.05, 1.0), victim)
    if fate[victim] == -signal.SIGKILL:
        assert "weights" in fate[1 - victim] or "lost" in fate[1 - victim]["error"]
    again, _ = run_ranks(2, told, small(**(vars(config) | {"resume": True})), tmp_path / "parts")
    for name in SAME:
        assert whole[name] == again[name], name


@pytest.mark.parametrize("spoken", ["dense", "topk_sgd,fraction=0.05", "diloco,period=4"])
@pytest.mark.parametrize("worlds", [(2, 1), pytest.param((2, 3), marks=pytest.mark.long)])
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


def test_resume_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    done, notes = kept(0, small(resume=True), tmp_path)
    assert isinstance(done, Result)
    assert notes == [f"no checkpoint in {tmp_path} yet: starting from the first step"]


def test_a_shorter_run_than_the_checkpoint_is_refused(tmp_path: Path) -> None:
    kept(0, small(steps=6), tmp_path)
    with pytest.raises(CheckpointError, match="of step 6, --steps ends at 4"):
        kept(0, small(steps=4, resume=True), tmp_path)


# -- strangers' folders
# --------------------------------------------------------------------------------------------------


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


def test_a_container_that_goes_by_another_name_goes_on(tmp_path: Path) -> None:
    kept(0, small(), tmp_path)
    (host,) = (tmp_path / "checkpoints").glob("host-*")
    host.rename(host.with_name("host-another"))
    done, _ = kept(0, small(steps=8, resume=True), tmp_path)
    assert isinstance(done, Result)
    assert done.resumed == (6,)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["host-another"]
