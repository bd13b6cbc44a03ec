"""The example that the README shows, as a reader would start it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.members import ROOT

EXAMPLE = Path("examples") / "your_own_loop.py"


def test_it_runs_on_two_ranks_and_sends_less() -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(EXAMPLE), "--steps", "20"]
    ran = subprocess.run(launch, check=False, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    said = re.search(r"loss (\S+) nats/byte after 20 steps on 2 ranks\nsent (\S+) MB from each rank, (\S+)x fewer", ran.stdout)
    assert said is not None, ran.stdout
    loss, sent, ratio = map(float, said.groups())
    assert loss < 5
    assert sent > 0
    assert ratio > 10


def test_it_adds_two_lines_to_a_loop() -> None:
    marked = [line for line in (ROOT / EXAMPLE).read_text().splitlines() if re.search(r"# the (first|second) line$", line)]
    assert ["attach(" in line or "close(" in line for line in marked] == [True, True]
