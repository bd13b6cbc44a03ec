"""What is found of a machine's network, on machines that are not well, too."""

import socket
from pathlib import Path
from typing import Any

import pytest

from tests.planner.machine.findings import only
from tests.warm import python_elsewhere
from thinwire.planner.machine import network

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
    assert (found.level, words in found.message) == ("problem", True), found


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
    assert (found.level, found.message.endswith("failed: no route")) == ("problem", True)


@pytest.mark.usefixtures("_warm")
def test_a_wrong_sum_is_a_problem_however_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "WORKER", network.WORKER.replace("x == 3", "x == 4"))
    monkeypatch.setattr(network, "busy", lambda: "this machine is busy")
    (found,) = network.allreduce(start_s=120.0, meet_s=120.0)
    assert (found.level, "the sum is wrong" in found.message) == ("problem", True)


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
    assert (found.level, says in found.message) == (level, True)
    assert level == "ok" or "GLOO_SOCKET_IFNAME=eth0" in found.do


def test_a_host_name_that_resolves_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: Any) -> Any:
        raise socket.gaierror("unknown")

    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", nothing)
    assert "resolves to nothing" in only(network.interfaces, "host name").message


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
    assert "503 Mbit/s" in found["receive buffer"].message
    assert "modprobe tcp_bbr" in found["congestion"].do
