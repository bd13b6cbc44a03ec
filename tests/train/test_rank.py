"""A rank's ends: each kind of error has its exit code, and its reason in one line on one rank."""

from __future__ import annotations

import importlib.util
import json
import signal
from pathlib import Path

import pytest

from tests.train.runs import small
from thinwire.errors import (
    CheckpointError,
    ConfigError,
    DisagreementError,
    FlightError,
    RankLostError,
)
from thinwire.launch.child import ERROR_FILE, LAUNCHER, read_error
from thinwire.text.output import CommandOutput
from thinwire.train import rank as module
from thinwire.train.rank import run_rank

OUTPUT = CommandOutput("thinwire train", as_json=False)


@pytest.fixture(autouse=True)
def in_the_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Rank 1 of 3, the first of its machine; and no tie to a parent process."""
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "3")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(LAUNCHER, raising=False)
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "error.json"))
    monkeypatch.setattr(module, "end_with_parent", lambda: None)


def ended(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, output: CommandOutput = OUTPUT
) -> int:
    """The exit code of a run that ends in an error."""

    def train(*_: object) -> None:
        raise error

    monkeypatch.setattr(module, "_train", train)
    return module._guarded(small(out="runs/x"), output)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (RankLostError([0, 2], "ranks 0, 2 are gone"), 1, "ranks 0, 2 are gone"),
        (CheckpointError("it is damaged"), 1, "it is damaged"),
        (DisagreementError("seeds differ"), 1, "seeds differ"),
        (FlightError("the wire broke"), 1, "the wire broke"),
        (ConfigError("--steps 0: at least 1"), 2, "--steps 0: at least 1"),
        (FloatingPointError("the loss is nan at step 3"), 1, "the loss is nan at step 3"),
        (MemoryError(), 1, "out of memory"),
        (FileNotFoundError(2, "No such file", "text.txt"), 1, "text.txt: No such file"),
        (OSError("a cable"), 1, "runs/x: a cable"),
        (KeyboardInterrupt(), 128 + signal.SIGINT, "interrupted before training began"),
        (InterruptedError("stopped after 3 of 6 steps"), 0, "stopped after 3 of 6 steps"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, BaseException) else None,
)
def test_each_error_has_its_code_and_is_printed_and_written_once(
    error: BaseException,
    code: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert ended(monkeypatch, error) == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"thinwire train: {text}\n")
    assert read_error(tmp_path / "error.json") == (text, True)


def test_a_rank_that_does_not_lead_its_machine_leaves_the_line_to_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert ended(monkeypatch, ConfigError("wrong")) == 2
    assert capsys.readouterr().err == ""
    assert read_error(tmp_path / "error.json") == ("wrong", False)
    assert ended(monkeypatch, FloatingPointError("nan here")) == 1
    assert "nan here" in capsys.readouterr().err, "what only this rank knows is printed by it"
    assert ended(monkeypatch, RankLostError([0], "rank 0 is gone")) == 1
    assert "rank 0 is gone" in capsys.readouterr().err, "the first that is left"


def test_under_a_launcher_the_one_object_is_the_launchers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    as_json = CommandOutput("thinwire train", as_json=True)
    assert ended(monkeypatch, ConfigError("wrong"), as_json) == 2
    assert json.loads(capsys.readouterr().out) == {"error": "wrong"}
    monkeypatch.setenv(LAUNCHER, "1")
    assert ended(monkeypatch, ConfigError("wrong"), as_json) == 2
    assert capsys.readouterr().out == ""


def test_packages_that_are_absent_are_all_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    absent = ("transformers", "rich")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in absent else find(name)
    )
    assert run_rank(small(), OUTPUT) == 2
    text = "transformers, rich not installed: pip install 'thinwire[train]'"
    assert capsys.readouterr().err == f"thinwire train: {text}\n"
