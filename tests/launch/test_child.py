"""What a rank does for its launcher: an error file, and a signal that does not end it at once."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from thinwire.launch.child import ERROR_FILE, StopSignal, interruptible, read_error, write_error


@pytest.mark.parametrize("printed", [True, False])
def test_an_error_is_read_as_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: bool
) -> None:
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "error"))
    write_error("two\nlines", printed)
    text, was_printed = read_error(tmp_path / "error")
    assert "\n" not in text
    assert text.startswith("two")
    assert was_printed is printed


@pytest.mark.parametrize("content", [None, "", "[]", '{"message": 3}', '{"message": {}}'])
def test_a_file_of_another_program_is_no_error(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "error"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    assert read_error(file) == ("", False)


def test_without_a_launcher_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ERROR_FILE, raising=False)
    monkeypatch.chdir(tmp_path)
    write_error("lost", printed=False)
    assert not list(tmp_path.iterdir())


def test_the_error_file_is_one_that_torchrun_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "error"))
    write_error("lost", printed=True)
    content = json.loads((tmp_path / "error").read_text())
    assert content["message"]["message"] == "lost"
    assert content["message"]["extraInfo"]["timestamp"] > 0


def test_a_signal_is_recorded_and_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop = StopSignal()
    with stop.listening():
        assert stop.number == 0
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # a launcher repeats it at once: no reason to end
        assert stop.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_ends_the_process_inside_the_block_only() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interruptible():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before
