"""`thinwire bench` told to end, as by a job scheduler, leaves nothing behind: no lab, no process,
no folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab.possible import why_not

INSTALLS = """
import sys
from pathlib import Path
from thinwire.bench import environments
from thinwire.cli.lab import ended_by_signals
writes = f"open({sys.argv[1]!r} + '/pid', 'w').write(str(os.getpid()))"
waits = f"import os, time; {writes}; time.sleep(60)"
runs = f"subprocess.run([sys.executable, '-c', {waits!r}])"
environments.PIP = ("-c", f"import subprocess, sys; {runs}")
with ended_by_signals():
    environments.python_for(("six==1.17.0",), Path(sys.argv[1]) / "kept")
"""


def ended(command: list[str], folder: Path, begun: str) -> str:
    """Start a command whose temporary files lie in a folder, end it once a file is there; what it
    complained of."""
    process = subprocess.Popen(
        command, env=os.environ | {"TMPDIR": str(folder)}, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 100
    while (
        not any(path.stat().st_size for path in folder.glob(begun))
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, complaint
    return complaint


@pytest.mark.skipif(bool(why := why_not()), reason=why)
def test_while_steps_are_made(tmp_path: Path) -> None:
    out, temporary = tmp_path / "out", tmp_path / "tmp"
    temporary.mkdir()
    flags = ["--quick", "--only", "DDP", "--part", "curves", "--out", str(out)]
    complaint = ended(
        [sys.executable, "-m", "thinwire", "bench", *flags], temporary, "thinwire-bench-*/job.json"
    )
    assert "Traceback" not in complaint
    assert [path for path in temporary.rglob("*") if not path.is_dir()] == []
    assert list(temporary.glob("thinwire-bench-*")) == []
    assert [path.name for path in out.iterdir()] == ["records.jsonl"]


def test_while_a_rival_is_installed(tmp_path: Path) -> None:
    ended([sys.executable, "-c", INSTALLS, str(tmp_path)], tmp_path, "pid")
    assert list((tmp_path / "kept").iterdir()) == []
    status = Path("/proc", (tmp_path / "pid").read_text(), "status")
    assert (
        not status.exists() or "State:\tZ" in status.read_text()
    )  # a container's first process may not reap it
