"""`thinwire doctor`: the whole of it once, and what it says of machines that are not well."""

import json
import re
from typing import Any

import pytest

from thinwire.cli.main import main
from thinwire.kernels import native
from thinwire.planner.machine import host, network
from thinwire.planner.machine.finding import Finding


def test_it_is_well_here(capfd: pytest.CaptureFixture[str]) -> None:
    """Two real processes all-reduce; what is a note depends on the machine."""
    code = main(["doctor", "--json"])
    out, err = capfd.readouterr()
    told = json.loads(out)
    checks = {each["what"]: each for each in told["checks"]}
    assert (out.count("\n"), err, code) == (1, "", 1 if told["problem"] else 0)
    assert checks["all-reduce"]["level"] == "ok", checks["all-reduce"]
    assert re.search(r"in [\d.]+ ms", checks["all-reduce"]["told"])
    assert checks["torch"]["level"] == checks["bf16"]["level"] == "ok"
    assert (
        native.chosen() in checks["kernels"]["told"]
        or "none were built" in checks["kernels"]["told"]
    )
    assert not [each for each in told["checks"] if "could not be looked at" in each["told"]]
    assert all(each["do"] for each in told["checks"] if each["level"] != "ok")


@pytest.mark.parametrize(("levels", "code"), [(["ok", "note"], 0), (["ok", "problem"], 1)])
@pytest.mark.parametrize("wide", [80, 120])
def test_a_problem_is_the_exit_code(
    levels: list[Any],
    code: int,
    wide: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        host,
        "CHECKS",
        (lambda: iter([Finding(each, each, "as it is " * 20, "do it") for each in levels]),),
    )
    monkeypatch.setenv("COLUMNS", str(wide))
    assert main(["doctor"]) == code
    out = capfd.readouterr().out
    assert max(map(len, out.splitlines())) <= wide
    assert ("no problems" in out) == (code == 0)


SLEEPS = "import time; time.sleep(60)"
STARTS = "import sys, time; open(f'{sys.argv[2]}/ready{sys.argv[1]}', 'w').close(); time.sleep(60)"


@pytest.mark.parametrize("worker", [SLEEPS, STARTS])
def test_on_a_busy_machine_lateness_is_a_note(
    worker: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(network, "WORKER", worker)
    monkeypatch.setattr(network, "busy", lambda: "this machine is busy: a loop gets 12% of a core")
    start_s = 0.3 if worker == SLEEPS else 30.0
    monkeypatch.setattr(host, "CHECKS", (lambda: network.allreduce(start_s=start_s, meet_s=0.3),))
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    (found,) = told["checks"]
    assert found["level"] == "note"
    assert "a loop gets 12% of a core, so nothing is known of the network" in found["told"]
    assert "when it is idle" in found["do"]
