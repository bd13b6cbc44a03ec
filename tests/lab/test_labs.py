"""Notes of labs: who lives is left alone, whatever else its process does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.possible import why_not
from thinwire.errors import LabError
from thinwire.lab import Lab, labs, private
from thinwire.net import uniform

pytestmark = pytest.mark.skipif(bool(why := why_not()), reason=why)


def test_two_labs_of_a_process_outlive_another_that_looks() -> None:
    look = "from thinwire.lab import labs; print([note.keeper for note in labs.clean()])"
    with Lab(uniform(1)) as one, Lab(uniform(1)) as two:
        labs.listed()
        ended = subprocess.run(
            [sys.executable, "-c", look], capture_output=True, text=True, timeout=60, check=True
        ).stdout
        assert not {str(lab._keeper.pid) for lab in (one, two)} & set(
            ended.strip("[]\n").split(", ")
        )
        assert one.call("host0", ["echo", "well"]) == "well\n"
        assert two.call("host0", ["echo", "well"]) == "well\n"


def test_a_file_where_notes_should_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "thinwire-0"
    there.touch()
    monkeypatch.setattr(private, "folder", lambda: there)
    with pytest.raises(
        LabError,
        match=r"cannot be noted in .*thinwire-0: it is no folder.*remove it .* or set TMPDIR",
    ):
        Lab(uniform(1))
