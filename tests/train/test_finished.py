"""What is read of a run that has ended."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import a_run
from thinwire.train.finished import ALIKE, HOLDS, read
from thinwire.train.result import Result


def test_what_is_read_is_what_a_run_tells() -> None:
    """The paths that are asked for are those of `Result.figures`, whatever it comes to hold."""
    import inspect

    told = inspect.getsource(Result.figures)
    for path in {*HOLDS, *(path for paths in ALIKE.values() for path in paths)}:
        head, _, last = path.rpartition(".")
        assert head in ("config", "result.time_shares") or f'"{last}"' in told, path


def test_the_file_itself_will_do(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(a_run()))
    assert read(tmp_path / "run.json") == read(tmp_path)
