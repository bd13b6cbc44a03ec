"""A fork that becomes a program is that program: its arguments, variables, folder, descriptors,
signals, exit code and children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.warm import WarmPopen, python_elsewhere, run

SHOWS = """
import os, sys
print(sys.argv, os.environ["MINE"], "HOME" in os.environ, os.getcwd(), "torch" in sys.modules)
print("a complaint", file=sys.stderr)
"""
STARTS = """
import os, subprocess, sys
child = subprocess.run(
    [sys.executable, "-c", "import os, sys; print(os.getppid(), *sys.stdin); sys.exit('no')"],
    input="given", capture_output=True, text=True)
print(os.getpid(), child.stdout.split(), child.stderr.strip(), child.returncode)
print(subprocess.run(["sh", "-c", "exit 4"]).returncode)
"""
SLEEPS = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(60)"


def test_it_has_its_own_arguments_variables_folder_and_output(tmp_path: Path) -> None:
    ended = run([sys.executable, "-c", SHOWS, "a", "b c"], {"MINE": "set"}, tmp_path)
    assert ended.stdout == f"['-c', 'a', 'b c'] set False {tmp_path} True\n"
    assert (ended.stderr, ended.returncode) == ("a complaint\n", 0)


@pytest.mark.parametrize(
    ("code", "expected"),
    [("sys.exit(3)", 3), ("sys.exit('why')", 1), ("1 / 0", 1), ("os._exit(7)", 7), ("pass", 0)],
)
def test_its_exit_code_is_pythons(code: str, expected: int) -> None:
    assert run([sys.executable, "-c", f"import os, sys; {code}"]).returncode == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_it(number: signal.Signals) -> None:
    process = WarmPopen([sys.executable, "-c", SLEEPS])
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(20) == -number


def test_python_that_it_starts_is_a_fork_of_it_and_other_programs_are_not() -> None:
    lines = run([sys.executable, "-c", STARTS]).stdout.splitlines()
    pid, rest = lines[0].split(" ", 1)
    assert rest == f"['{pid}', 'given'] no 1"
    assert lines[1] == "4"


def test_a_module_runs_as_on_the_command_line() -> None:
    shown = run([sys.executable, "-m", "thinwire", "--version"])
    assert shown.stdout.startswith("thinwire ")
    assert run([sys.executable, "-m", "thinwire", "no-such-command"]).returncode == 2


def test_who_stands_in_for_a_program_ends_with_it_and_it_with_them(tmp_path: Path) -> None:
    python = python_elsewhere(tmp_path)
    assert subprocess.run([python, "-c", "raise SystemExit(5)"], check=False).returncode == 5
    with subprocess.Popen([python, "-c", SLEEPS], stdout=subprocess.PIPE, text=True) as stands:
        assert stands.stdout is not None
        pid = int(stands.stdout.readline())
        stands.kill()
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not os.path.exists(f"/proc/{pid}")
