"""`thinwire lab`: what it refuses, and what it measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.possible import why_not
from thinwire.cli import lab
from thinwire.cli.main import main
from thinwire.lab.check import Finding

needs_labs = pytest.mark.skipif(bool(why := why_not()), reason=why)


def refused(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert main(["lab", *flags]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["show", "--hosts", "0"], "0 hosts: there is at least 1"),
        (
            ["show", "--nodes", "0", "--inner-rate", "1gbit"],
            "--nodes 0 cannot share 2 --hosts evenly",
        ),
        (["show", "--hosts", "65"], "65 hosts: a lab has 1 to 64"),
        (["show", "--rate", "1000gbit"], "more than the 4.29 GB that tc holds back"),
        (
            ["show", "--rate", "10gbit", "--queue", "60s"],
            "more than the 4.29 GB that tc holds back",
        ),
        (
            ["run", "--sysctl", "fs.inotify.max_queued_events=16384", "--", "true"],
            "only net.* can be set in a lab",
        ),
        (["run", "--timeout", "-1", "--", "true"], "timeout=-1 s cannot be waited for"),
        (["run", "--timeout", "nan", "--", "true"], "timeout=nan s cannot be waited for"),
        (["run", "--grace", "-1", "--", "true"], "grace=-1 s cannot be waited for"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(capsys, *flags)


def test_a_share_says_by_which_interval_it_is_judged() -> None:
    words = lab._words(Finding("loss", "host0", "host1", 0.01, 0.012, True, 9000, 0.0099, 0.0145))
    assert words.endswith(
        "asked 1.000%     measured 1.200% (0.990% to 1.450% at 95 %, judged at 99.9 %; 9,000 "
        "packets)"
    )


@needs_labs
def test_nothing_to_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing to measure; ask for two hosts" in refused(capsys, "check", "--hosts", "1")
    file = tmp_path / "lab.toml"
    file.write_text('hosts = 2\n[[change]]\nat = "0s"\ncut = ["host1"]\n')
    assert "host1 cut off: nothing can be measured" in refused(capsys, "check", "--file", str(file))


@pytest.mark.long
@needs_labs
def test_a_change_at_the_beginning_is_what_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "lab.toml"
    file.write_text('hosts = 2\nrate = "100mbit"\n[[change]]\nat = "0s"\nrate = "10mbit"\n')
    main(["lab", "check", "--json", "--file", str(file)])
    found = [
        each for each in json.loads(capsys.readouterr().out)["findings"] if each["what"] == "rate"
    ]
    assert [(each["asked"], each["ok"]) for each in found] == [(1e7, True)] * 2


@needs_labs
def test_a_long_environment_and_small_packets() -> None:
    """Two variables of 90 kB, on the smallest packets that IPv4 asks for."""
    long = {f"LONG{i}": "x" * 90_000 for i in range(2)}
    command = [
        sys.executable,
        "-m",
        "thinwire",
        "lab",
        "run",
        "--hosts",
        "1",
        "--mtu",
        "576",
        "--",
        "sh",
        "-c",
        "echo ${#LONG0} ${#LONG1}",
    ]
    ran = subprocess.run(
        command, env=os.environ | long, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.stdout, ran.returncode) == ("[host0] 90000 90000\n", 0), ran.stderr
