"""`thinwire doctor`: the whole of it once, and what it says of machines that are not well."""

import importlib.metadata
import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.warm import python_elsewhere
from thinwire.cli import _network as network
from thinwire.cli import doctor
from thinwire.cli._finding import Finding
from thinwire.cli.main import main
from thinwire.errors import LabError
from thinwire.kernels import native


def only(check: Callable[[], Iterator[Finding]], what: str) -> Finding:
    (found,) = [each for each in doctor.looked(check) if each.what == what]
    return found


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
        doctor,
        "CHECKS",
        (lambda: iter([Finding(each, each, "as it is " * 20, "do it") for each in levels]),),
    )
    monkeypatch.setenv("COLUMNS", str(wide))
    assert main(["doctor"]) == code
    out = capfd.readouterr().out
    assert max(map(len, out.splitlines())) <= wide
    assert ("no problems" in out) == (code == 0)


def test_a_check_that_cannot_look_says_so() -> None:
    def broken() -> Iterator[Finding]:
        raise PermissionError("not for you")
        yield

    assert list(doctor.looked(broken)) == [
        Finding("note", "broken", "could not be looked at: PermissionError: not for you")
    ]


@pytest.mark.parametrize(
    ("here", "asked", "level", "words"),
    [
        (("torch", "baseline", "avx2"), None, "ok", "C++ for avx2, the best of baseline, avx2"),
        (
            ("torch", "baseline", "avx2"),
            "baseline",
            "note",
            "baseline, as THINWIRE_KERNELS asks; avx2 runs here",
        ),
        (("torch",), None, "note", "none were built"),
        (
            ("torch", "baseline"),
            "avx512",
            "problem",
            "not built, or not run by this processor; here are torch, baseline",
        ),
        (("torch", "baseline"), "sse", "problem", "choose one of torch, baseline, avx2, avx512"),
    ],
)
def test_it_tells_which_kernels_are_in_use(
    here: tuple[str, ...],
    asked: str | None,
    level: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "available", lambda: here)
    monkeypatch.setattr(native, "chosen", lambda: native._asked.__wrapped__(asked))
    found = only(doctor._kernels, "kernels")
    assert found.level == level
    assert words in found.told


SLEEPS = "import time; time.sleep(60)"
STARTS = "import sys, time; open(f'{sys.argv[2]}/ready{sys.argv[1]}', 'w').close(); time.sleep(60)"


@pytest.mark.parametrize(
    ("worker", "words"),
    [(SLEEPS, "had not started after 1 s, twice"), (STARTS, "were not done after 1 s, twice")],
)
def test_two_processes_that_never_meet_are_a_problem(
    worker: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "WORKER", worker)
    monkeypatch.setattr(network, "busy", lambda: "")
    start_s = 0.5 if worker == SLEEPS else 30.0
    (found,) = network.allreduce(start_s=start_s, meet_s=0.5)
    assert (found.level, words in found.told) == ("problem", True), found


@pytest.mark.parametrize("worker", [SLEEPS, STARTS])
def test_on_a_busy_machine_lateness_is_a_note(
    worker: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(network, "WORKER", worker)
    monkeypatch.setattr(network, "busy", lambda: "this machine is busy: a loop gets 12% of a core")
    start_s = 0.3 if worker == SLEEPS else 30.0
    monkeypatch.setattr(doctor, "CHECKS", (lambda: network.allreduce(start_s=start_s, meet_s=0.3),))
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    (found,) = told["checks"]
    assert found["level"] == "note"
    assert "a loop gets 12% of a core, so nothing is known of the network" in found["told"]
    assert "when it is idle" in found["do"]


@pytest.fixture
def _warm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that have torch loaded."""
    monkeypatch.setattr(network.sys, "executable", str(python_elsewhere(tmp_path)))


@pytest.mark.usefixtures("_warm")
def test_late_once_is_not_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once = tmp_path / "once"  # that it has come to this, late
    first = f"sys.argv[1] == '0' and not os.path.exists({str(once)!r})"
    late = f"import os, sys, time\nif {first}:\n    open({str(once)!r}, 'w')\n    time.sleep(60)\n"
    monkeypatch.setattr(network, "WORKER", late + network.WORKER)
    monkeypatch.setattr(network, "busy", lambda: "")
    (found,) = network.allreduce(start_s=4.0, meet_s=120.0)
    assert found.level == "ok", found


@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_that_fail_are_a_problem_however_busy(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = (
        f"import sys, time\ntime.sleep(60) if int(sys.argv[1]) != {rank} else sys.exit('no route')"
    )
    monkeypatch.setattr(network, "WORKER", fails)
    monkeypatch.setattr(network, "busy", lambda: "this machine is busy")
    (found,) = network.allreduce(start_s=120.0, meet_s=120.0)
    assert (found.level, found.told.endswith("failed: no route")) == ("problem", True)


@pytest.mark.usefixtures("_warm")
def test_a_wrong_sum_is_a_problem_however_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "WORKER", network.WORKER.replace("x == 3", "x == 4"))
    monkeypatch.setattr(network, "busy", lambda: "this machine is busy")
    (found,) = network.allreduce(start_s=120.0, meet_s=120.0)
    assert (found.level, "the sum is wrong" in found.told) == ("problem", True)


def test_a_busy_machine_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network.os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    assert "this machine is busy" in network.busy()
    monkeypatch.setattr(network.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(network.time, "thread_time", lambda: 0.0)
    assert network.busy() == "this machine is busy: a loop gets 0% of a core"


def test_an_interface_that_is_not_there_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth99")
    assert only(network.interfaces, "gloo's interface").level == "problem"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", next(iter(network.addresses())))
    assert only(network.interfaces, "gloo's interface").level == "ok"


@pytest.mark.parametrize(
    ("named", "level", "says"),
    [
        ("127.0.1.1", "note", "no other machine"),
        ("203.0.113.9", "note", "no address of this machine"),
        ("192.0.2.7", "ok", "this machine's"),
    ],
)
def test_what_the_host_name_resolves_to(
    named: str, level: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(network, "addresses", lambda: {"lo": ["127.0.0.1"], "eth0": ["192.0.2.7"]})
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [(2, 1, 6, "", (named, 0))])
    found = only(network.interfaces, "host name")
    assert (found.level, says in found.told) == (level, True)
    assert level == "ok" or "GLOO_SOCKET_IFNAME=eth0" in found.do


def test_a_host_name_that_resolves_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: Any) -> Any:
        raise socket.gaierror("unknown")

    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", nothing)
    assert "resolves to nothing" in only(network.interfaces, "host name").told


def test_tcp_for_long_links(monkeypatch: pytest.MonkeyPatch) -> None:
    says = {
        "tcp_congestion_control": "cubic",
        "tcp_slow_start_after_idle": "1",
        "tcp_rmem": "4096 131072 6291456",
        "tcp_wmem": "4096 16384 67108864",
    }
    monkeypatch.setattr(network, "read", lambda place: says.get(Path(place).name))
    found = {each.what: each for each in network.tcp()}
    assert {what: each.level for what, each in found.items()} == {
        "congestion": "note",
        "slow start": "note",
        "receive buffer": "note",
        "send buffer": "ok",
    }
    assert "503 Mbit/s" in found["receive buffer"].told
    assert "modprobe tcp_bbr" in found["congestion"].do


def test_packages_that_are_missing_are_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", none)
    assert {each.level for each in doctor._packages()} == {"note"}


def test_every_extra_package_is_looked_for() -> None:
    """The table is pyproject's: a package that a command comes to need is not forgotten here."""
    told = {}
    for line in (Path(__file__).parents[2] / "pyproject.toml").read_text().splitlines():
        if found := re.fullmatch(r"(train|hub) = \[(.*)\]", line):
            told |= {
                re.split(r"[><=]", name.strip(' "'))[0]: found[1] for name in found[2].split(",")
            }
    assert told == {name: extra for name, (_, extra) in doctor.PACKAGES.items()}


def test_a_cache_that_cannot_be_written_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    assert only(doctor._room, "cache").level == "problem"


def test_a_machine_without_namespaces_has_no_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise LabError("this machine gives nobody namespaces")

    monkeypatch.setattr("thinwire.lab.Lab", refuse)
    [found] = doctor._lab()
    assert found.level == "note"
    assert "gives nobody namespaces" in found.told
