"""Ranks of one machine: their variables, restarts, and the report of a failure."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from thinwire.launch.elastic import INVALID, Workers, run_workers
from thinwire.text.output import CommandOutput

ALONE = ("", 0)


def script(tmp_path: Path, text: str) -> list[str]:
    file = tmp_path / "rank.py"
    file.write_text("import os, pathlib, sys\n" + text, encoding="utf-8")
    return [sys.executable, str(file)]


def test_ranks_have_torchruns_variables(tmp_path: Path) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR")
    command = script(
        tmp_path,
        f"values = ' '.join(os.environ[name] for name in {names!r})\n"
        f"pathlib.Path({str(tmp_path)!r}, 'seen' + os.environ['RANK']).write_text(values)\n",
    )
    assert run_workers(Workers(command, 2), ALONE, CommandOutput("test", as_json=False)) == 0
    seen = [(tmp_path / f"seen{rank}").read_text() for rank in range(2)]
    assert seen == ["0 0 2 2 0 127.0.0.1", "1 1 2 2 0 127.0.0.1"]


def test_ranks_that_fail_are_started_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = script(tmp_path, "sys.exit(os.environ['TORCHELASTIC_RESTART_COUNT'] == '0')\n")
    assert (
        run_workers(Workers(command, 2, restarts=1), ALONE, CommandOutput("test", as_json=False))
        == 0
    )
    assert "starting this machine's workers again (1 of 1 times)" in capfd.readouterr().err


def test_an_invalid_request_is_not_tried_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = script(tmp_path, f"sys.exit({INVALID})\n")
    workers = Workers(command, 1, restarts=3)
    assert run_workers(workers, ALONE, CommandOutput("test", as_json=False)) == INVALID
    assert "again" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "line", "code"),
    [
        ("sys.exit(3)\n", "rank 0 ended with exit code 3 and printed nothing", 3),
        ("os.kill(os.getpid(), 9)\n", "rank 0 was killed by SIGKILL", 1),
        (
            "from thinwire.launch.child import write_error\n"
            "write_error('no disk', printed=False)\nsys.exit(1)\n",
            "no disk",
            1,
        ),
    ],
)
def test_what_no_rank_has_printed_is_printed_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str, line: str, code: int
) -> None:
    workers = Workers(script(tmp_path, text), 1)
    assert run_workers(workers, ALONE, CommandOutput("test", as_json=True)) == code
    out, err = capfd.readouterr()
    assert err.count(line) == 1
    assert line in json.loads(out)["error"]
