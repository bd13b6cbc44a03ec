"""`thinwire bench` refuses before it measures what could come to no page."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from thinwire.bench.records import RECORDS
from thinwire.cli.bench import arguments, typed


def bench(*said: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "thinwire", "bench", *said]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_folder_of_curves_of_another_model(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    curve = {
        "kind": "curve",
        "key": "a",
        "name": "DDP",
        "seed": 0,
        "parameters": 480096,
        "error": None,
        "validation": [[1, 2.0]],
    }
    before = json.dumps(curve) + "\n"
    (tmp_path / "there" / RECORDS).write_text(before)
    done = bench("--quick", "--only", "DDP", "--part", "curves", "--out", "there", folder=tmp_path)
    assert done.returncode == 2
    assert "there holds curves of a model of 480,096 parameters" in done.stderr
    assert "--out of its own" in done.stderr
    assert (tmp_path / "there" / RECORDS).read_text() == before


def test_a_proof_of_what_takes_no_part(tmp_path: Path) -> None:
    done = bench("--quick", "--only", "DDP", "--part", "proof", folder=tmp_path)
    assert done.returncode == 2
    assert "choose them, too, by --only and --link" in done.stderr
    assert list(tmp_path.iterdir()) == []


def options(line: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    arguments(parser)
    return parser.parse_args(shlex.split(line))


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("", "thinwire bench"),
        ("--quick --out /mine --retry", "thinwire bench --quick"),
        (
            (
                "--seeds 2 --only DDP --add diloco,period=20 --add /folder/mine.toml --link '100 "
                "Mb/s, 50 ms' --part times --only dense"
            ),
            (
                "thinwire bench --only DDP --only dense --add diloco,period=20 --add mine.toml "
                "--link '100 Mb/s, 50 ms' --part times --seeds 2"
            ),
        ),
    ],
)
def test_the_command_is_kept_without_this_machines_paths(line: str, kept: str) -> None:
    assert typed(options(line)) == kept
