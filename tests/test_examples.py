"""The examples as a reader starts them: alone, and on two ranks, where they print what
examples/golden has.

Bytes, ratios and words are compared exactly. A loss (a decimal in a line that says "loss") may be
off by TOLERANCE, since CPUs differ in the last bits of a float32 and training adds that up. After a
change on purpose: run the README's command, and put its output there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest

from tests import rays
from tests.members import ROOT
from tests.warm import run

EXAMPLES = ROOT / "examples"
TITAN = "torchtitan_hsdp"  # wants accelerators: tests/adapters/test_torchtitan.py lends it CPUs
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != TITAN)
TWO_RANKS = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
TRAINING = [name for name in NAMES if name != "choose_a_strategy"]
RAY = "ray_train"  # Ray starts the ranks, so no torchrun does
COLD = ("your_own_loop", RAY)
TOLERANCE = 0.008  # of a loss: processors add up in another order, and 24 steps apart that is 0.6 %
DECIMAL = re.compile(r"\d+\.\d+")


def golden(name: str) -> str:
    return (EXAMPLES / "golden" / f"{name}.txt").read_text(encoding="utf-8")


def printed(name: str, folder: Path, *flags: str, launch: list[str] | None = None) -> str:
    """What an example prints, started in an empty folder: one from cold, as a reader starts it, the
    others in processes that have torch loaded."""
    command = [sys.executable, *(launch or []), str(EXAMPLES / f"{name}.py"), *flags]
    variables = os.environ | {"OMP_NUM_THREADS": "1"}
    if name == RAY:
        pytest.importorskip("ray", reason="pip install 'thinwire[ray]'")
        variables |= rays.variables()
    if name in COLD:
        ran = subprocess.run(
            command,
            check=False,
            cwd=folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=240,
        )
    else:
        ran = run(command, variables, folder)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def unlike(told: str, expected: str) -> list[str]:
    """Where two outputs differ, a line each."""
    pairs = zip_longest(told.splitlines(), expected.splitlines())
    return [
        f"line {number}: {a!r}, expected {b!r}"
        for number, (a, b) in enumerate(pairs, 1)
        if not alike(a, b)
    ]


def alike(told: str | None, expected: str | None) -> bool:
    if told is None or expected is None or not re.search(r"\bloss\b", expected):
        return told == expected
    losses, due = ([float(each) for each in DECIMAL.findall(line)] for line in (told, expected))
    return DECIMAL.sub("", told) == DECIMAL.sub("", expected) and losses == pytest.approx(
        due, rel=TOLERANCE
    )


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_on_two_ranks_it_prints_the_golden_output(name: str, tmp_path: Path) -> None:
    told = printed(name, tmp_path, launch=None if name == RAY else TWO_RANKS)
    assert unlike(told, golden(name)) == []


@pytest.mark.long
@pytest.mark.parametrize("name", TRAINING)
def test_alone_it_is_a_world_of_one(name: str, tmp_path: Path) -> None:
    told = printed(name, tmp_path, "--steps=12", *(["--workers=1"] if name == RAY else []))
    assert "ranks: 1" in told


def test_choosing_takes_no_ranks(tmp_path: Path) -> None:
    assert unlike(printed("choose_a_strategy", tmp_path), golden("choose_a_strategy")) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_golden_fails(name: str) -> None:
    """Each line left out, each with another word, and each number, a bit off: a byte, a step, or a
    loss beyond the tolerance."""
    text = golden(name)
    lines = text.splitlines()
    for place, line in enumerate(lines):
        changes = [[], [f"{line}!"]]
        for match in re.finditer(r"\d+(?:\.\d+)?", line):
            loss = "." in match[0] and "loss" in line
            other = (
                f"{float(match[0]) * 1.01:.3f}"
                if loss
                else match[0][:-1] + str((int(match[0][-1]) + 1) % 10)
            )
            changes.append([line[: match.start()] + other + line[match.end() :]])
        for change in changes:
            assert unlike(text, "\n".join([*lines[:place], *change, *lines[place + 1 :]])), change


def test_a_loss_may_differ_in_its_last_digit() -> None:
    assert alike("step   20  loss 3.425 nats", "step   20  loss 3.424 nats")
    assert not alike("step   21  loss 3.424 nats", "step   20  loss 3.424 nats")
    assert not alike("sent 3.425 MB", "sent 3.424 MB")


@pytest.mark.parametrize("name", NAMES)
def test_it_is_short_and_listed(name: str) -> None:
    assert (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").count("\n") < 120
    assert f"]({name}.py)" in (EXAMPLES / "README.md").read_text(encoding="utf-8")


def test_no_golden_output_is_left_of_an_example_that_is_gone() -> None:
    assert sorted(path.stem for path in (EXAMPLES / "golden").iterdir()) == NAMES


def test_your_own_loop_gains_two_lines() -> None:
    text = (EXAMPLES / "your_own_loop.py").read_text(encoding="utf-8")
    marked = [line for line in text.splitlines() if re.search(r"# the (first|second) line$", line)]
    assert ["attach(" in line or "close(" in line for line in marked] == [True, True]
