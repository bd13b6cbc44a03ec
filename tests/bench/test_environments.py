"""Environments of rivals: none where nothing is required, and one that cannot be made leaves
nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from thinwire.bench import environments
from thinwire.bench.environments import python_for
from thinwire.errors import BenchError


def test_no_requirements_need_no_environment(tmp_path: Path) -> None:
    assert python_for((), tmp_path) == Path(sys.executable)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_installed_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    with pytest.raises(BenchError, match=r"pip install --no-index \S*nowhere failed:\n.*nowhere"):
        python_for((f"--no-index {missing}",), tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_python_that_makes_no_environments_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Debian without python3-venv."""
    monkeypatch.setattr(environments, "PIP", ("-I", "-m", "no_ensurepip"))
    with pytest.raises(
        BenchError,
        match=(
            r"no pip for a new environment \(on Debian: apt-get install python3-venv\):\n.*No "
            r"module named"
        ),
    ):
        python_for(("six==1.17.0",), tmp_path)
    assert list(tmp_path.iterdir()) == []
