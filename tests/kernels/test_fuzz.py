"""A short fuzz of the CPU kernels' best build; `make long` takes all of them, and `make fuzz` as
long as it is told."""

import shutil
import subprocess
import sys

import pytest

from tests.members import ROOT


@pytest.mark.long
@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
def test_random_bytes_and_sizes_harm_no_kernel() -> None:
    command = [
        sys.executable,
        str(ROOT / "scripts" / "fuzz_kernels.py"),
        "--quick",
        "--seconds",
        "2",
        "--seed",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" rounds") >= 1
