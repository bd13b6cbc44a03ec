"""What a command says on the way out of a lab: at once, whatever becomes of its reader, and without
waiting for those it left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.possible import why_not
from thinwire.errors import LabError
from thinwire.lab import Lab
from thinwire.lab.spaces import Child, Space
from thinwire.net import uniform

RUN = [sys.executable, "-m", "thinwire", "lab", "run", "--hosts", "1", "--"]


pytestmark = pytest.mark.skipif(bool(why := why_not()), reason=why)


def test_a_line_of_python_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    heard = tmp_path / "heard"
    code = (
        f"import os, time; print('hello')\nwhile not os.path.exists({str(heard)!r}): "
        "time.sleep(0.02)"
    )
    with Lab(uniform(1)) as lab:
        done = lab.run([sys.executable, "-c", code], timeout=30, on_line=lambda *_: heard.touch())
    assert done.worst == 0


def test_a_command_outlives_what_hears_its_lines(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    with (
        Lab(uniform(1)) as lab,
        pytest.raises(
            LabError,
            match=r"host0's lines could not be passed on \(division by zero\); the command ran on",
        ),
    ):
        lab.run(
            ["sh", "-c", f"echo 1; sleep 0.3; echo 2; touch {ended}"],
            on_line=lambda *_: print(1 / 0),
        )
    assert ended.exists()


def test_what_a_command_leaves_costs_one_wait_for_all_hosts() -> None:
    with Lab(uniform(3)) as lab:
        done = lab.run(["sh", "-c", "setsid sleep 60 & sleep 0.1"], on_line=lambda *_: None)
    assert done.worst == 0
    assert done.seconds < 12, "5 s for all, not for each of six streams"


@pytest.mark.parametrize("together", [False, True])
def test_a_command_outlives_a_pipe_that_nobody_reads(together: bool, tmp_path: Path) -> None:
    command = [*RUN, "sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.2; done; exit 3"]
    with open(tmp_path / "said", "w+") as said:
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if together else said,
            text=True,
        ) as ran:
            assert ran.stdout is not None
            assert ran.stdout.readline() == "[host0] 1\n"
            ran.stdout.close()
            assert ran.wait(30) == 3
        said.seek(0)
        assert "Error" not in said.read()


def test_a_terminal_without_arrows() -> None:
    ran = subprocess.run(
        [*RUN, "sh", "-c", "echo →; exit 3"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.stdout, ran.returncode) == ("[host0] \\u2192\n", 3)


def test_nohup_holds() -> None:
    with subprocess.Popen(
        ["nohup", *RUN, "sh", "-c", "echo up; sleep 1; exit 3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as ran:
        assert ran.stdout is not None
        assert ran.stdout.readline().endswith("up\n")
        ran.send_signal(signal.SIGHUP)
        assert ran.wait(30) == 3


def test_what_is_stopped_may_be_gone_with_its_space() -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    there.close()
    child = Child(
        Space("host0", here), 1, ["sleep"]
    )  # the keeper is gone, and nobody has read so yet
    assert child.stop(0.1) == -signal.SIGKILL
    here.close()
