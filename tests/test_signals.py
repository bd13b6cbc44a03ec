"""The suite is green wherever it is started: in the background, too, where SIGINT is ignored."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.members import ROOT

STARTS = """
import signal, subprocess, sys
for number in (signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
if sys.argv[1] == "as conftest does":
    from tests.signals import take_interrupts
    take_interrupts()
child = subprocess.Popen(["sleep", "30"])
child.send_signal(int(sys.argv[2]))
try:
    print(child.wait(0.5 if sys.argv[1] == "as it is" else 20))
except subprocess.TimeoutExpired:
    child.kill()
    print("goes on")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize(
    ("mode", "expected"), [("as it is", "goes on"), ("as conftest does", None)]
)
def test_a_child_of_a_suite_in_the_background_can_be_interrupted(
    mode: str, expected: str | None, number: signal.Signals
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", STARTS, mode, str(int(number))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ended.stdout.strip() == (expected or str(-number))


def test_this_suite_takes_interrupts() -> None:
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    assert signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
