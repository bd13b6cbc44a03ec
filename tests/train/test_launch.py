"""`thinwire train --workers N`: wrong settings are refused before a rank is started, and each rank
is given the same settings again."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.train.runs import small
from thinwire.errors import ConfigError, ThinwireError
from thinwire.launch.elastic import Workers
from thinwire.text.output import CommandOutput
from thinwire.train import launch as module
from thinwire.train import rank
from thinwire.train.config import TrainConfig
from thinwire.train.launch import launch

SAY = CommandOutput("thinwire train", as_json=False)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would have been started: workers and master, or the settings of a single rank."""
    out: list[Any] = []

    def run_workers(workers: Workers, master: tuple[str, int], output: CommandOutput) -> int:
        out.append((workers, master))
        return 7

    def run_rank(config: TrainConfig, output: CommandOutput) -> int:
        out.append(config)
        return 5

    monkeypatch.setattr(module, "run_workers", run_workers)
    monkeypatch.setattr(module, "must_fit", lambda *_: None)
    monkeypatch.setattr(rank, "run_rank", run_rank)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    return out


def test_a_single_rank_needs_no_launcher(started: list[Any], tmp_path: Path) -> None:
    config = small(workers=1, out=str(tmp_path))
    assert launch(config, SAY) == 5
    assert started == [config]


def test_ranks_share_the_cores_and_have_the_same_settings(
    started: list[Any], tmp_path: Path
) -> None:
    config = small(workers=2, out=str(tmp_path))
    assert launch(config, CommandOutput("thinwire train", as_json=True)) == 7
    ((workers, master),) = started
    assert (workers.count, workers.machines, workers.threads, master) == (2, 1, 2, ("", 0))
    assert workers.command[:5] == [sys.executable, "-m", "thinwire", "train", "--json"]
    assert f"--out={tmp_path}" in workers.command
    assert "--steps=6" in workers.command


def test_a_rank_that_may_be_started_again_has_a_launcher(
    started: list[Any], tmp_path: Path
) -> None:
    assert launch(small(workers=1, restarts=2, out=str(tmp_path)), SAY) == 7
    assert (started[0][0].count, started[0][0].restarts) == (1, 2)


def test_more_workers_than_cores_are_started_with_a_warning(
    started: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch(small(workers=5, out=str(tmp_path)), SAY)
    assert "warning: 5 workers share 4 cores" in capsys.readouterr().err
    assert started[0][0].threads == 1


def test_several_machines_have_a_master_and_their_number(
    started: list[Any], tmp_path: Path
) -> None:
    config = small(workers=2, nodes=3, node_rank=1, master="127.0.0.1", out=str(tmp_path))
    launch(config, SAY)
    ((workers, master),) = started
    assert master == ("127.0.0.1", 29500)
    assert (workers.machines, workers.machine, workers.first_rank) == (3, 1, 2)


@pytest.mark.parametrize(
    ("given", "master"),
    [
        ("10.0.0.1:1234", ("10.0.0.1", 1234)),
        ("head", ("head", 29500)),
        ("[::1]:99", ("::1", 99)),
        ("[fe80::1]", ("fe80::1", 29500)),
    ],
)
def test_a_master_is_a_host_and_perhaps_a_port(given: str, master: tuple[str, int]) -> None:
    assert module._master(small(nodes=2, master=given)) == master


@pytest.mark.parametrize("given", ["", "::1", "head:", "head:0x1", "head:70000", "a b", ":29500"])
def test_what_is_no_master_is_refused_with_a_remedy(started: list[Any], given: str) -> None:
    with pytest.raises(ConfigError) as refused:
        launch(small(nodes=2, workers=1, master=given), SAY)
    text = str(refused.value)
    assert text.startswith("--nodes 2 needs --master HOST:PORT, an address of machine 0")
    assert text.endswith(f"such as 10.0.0.1:29500; got {given!r}" if given else "10.0.0.1:29500")
    assert started == []


def test_a_machine_beyond_the_last_is_refused(started: list[Any]) -> None:
    with pytest.raises(ConfigError, match="--node-rank 2 of --nodes 2: machines are 0 to 1"):
        launch(small(nodes=2, node_rank=2, master="127.0.0.1"), SAY)
    assert started == []


def test_a_strategy_that_cannot_be_is_refused_once_and_here(started: list[Any]) -> None:
    with pytest.raises(ThinwireError, match="qsdg"):
        launch(small(workers=2, strategy="qsdg,bits=4"), SAY)
    assert started == []
