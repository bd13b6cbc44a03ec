"""Labs for real: what a command sees, what a wire delivers, and that nothing stays, however it
ends."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.lab.possible import why_not
from thinwire.errors import LabError
from thinwire.lab import Lab, labs, private
from thinwire.lab.check import check
from thinwire.lab.delay import has_netem
from thinwire.net import Change, Network, Wire, two_level, uniform

THINWIRE = [sys.executable, "-m", "thinwire"]


pytestmark = pytest.mark.skipif(bool(why := why_not()), reason=why)


@contextlib.contextmanager
def started(command: list[str], **how: object) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with the test: one that fails must not wait for it, and the pytest worker
    with it."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **how)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait(20)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    before = left()
    yield
    deadline = time.monotonic() + 5
    while (after := left() - before) and time.monotonic() < deadline:
        time.sleep(0.05)  # other processes may take a moment to die
    assert not after


def left() -> set[str]:
    """Keepers and notes of labs, and the machine's own interfaces and named namespaces."""
    found = {f"interface {name}" for name in os.listdir("/sys/class/net")}
    found |= {f"namespace {path.name}" for path in Path("/run/netns").glob("*")}
    found |= {f"note {path.name}" for path in private.folder().glob(f"{os.getpid()}-*")}
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            if "keeper.py" in command and ancestor(int(name)):
                found.add(f"process {name}")
    return found


def ancestor(pid: int) -> bool:
    """Whether a process comes from this one: other test workers have labs of their own."""
    with contextlib.suppress(OSError):
        while pid > 1:
            if pid == os.getpid():
                return True
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


def lines(lab: Lab, argv: list[str], **more: object) -> tuple[dict[str, list[str]], object]:
    heard: dict[str, list[str]] = {}
    done = lab.run(
        argv, on_line=lambda host, line, _: heard.setdefault(host, []).append(line), **more
    )  # type: ignore[arg-type]
    return heard, done


def test_each_host_has_torchruns_environment_and_a_network_of_its_own() -> None:
    names = [
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "GROUP_RANK",
        "MASTER_ADDR",
        "GLOO_SOCKET_IFNAME",
    ]
    told = "; ".join(f"echo {name}=${name}" for name in names)
    with Lab(two_level(2, 2, None, 1e8)) as lab:
        heard, done = lines(
            lab, ["sh", "-c", f"{told}; hostname; ls /sys/class/net; grep -c host /etc/hosts"]
        )
    assert done.worst == 0
    for rank, host in enumerate(lab.hosts):
        local, node = str(rank % 2), str(rank // 2)
        values = [str(rank), "4", local, "2", node, "10.77.0.1", "eth0"]
        assert heard[host] == [
            *map("=".join, zip(names, values, strict=True)),
            host,
            "eth0",
            "lo",
            "9",
        ]


def test_codes_time_outs_and_hosts_that_hang() -> None:
    with Lab(uniform(3)) as lab:
        _, done = lines(lab, ["sh", "-c", "exit $RANK"])
        assert (done.codes, done.worst, done.stopped) == (
            {"host0": 0, "host1": 1, "host2": 2},
            2,
            {},
        )
        _, done = lines(lab, ["sh", "-c", "test $RANK = 1 && exit 3; sleep 60"], grace=0.3)
        assert done.codes["host1"] == 3
        assert done.worst == 3
        assert done.stopped == dict.fromkeys(("host0", "host2"), "another host failed")
        _, done = lines(
            lab, ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"], timeout=0.3, grace=0.3
        )
        assert done.worst == 124
        assert set(done.codes.values()) == {-signal.SIGKILL}
        assert done.seconds < 10
        _, done = lines(lab, ["sh", "-c", "kill -SEGV $$"])
        assert done.worst == 128 + signal.SIGSEGV
        with pytest.raises(LabError, match="cannot run 'no-such-command'"):
            lab.run(["no-such-command"])
        with pytest.raises(LabError, match="no command"):
            lab.run([])
        assert lines(lab, ["echo", "still well"])[0]["host2"] == ["still well"]


def test_what_a_command_leaves_running_ends_with_it() -> None:
    with Lab(uniform(1)) as lab:
        begun = time.monotonic()
        heard, _ = lines(lab, ["sh", "-c", "sleep 60 & echo started"])
        assert heard == {"host0": ["started"]}
        assert time.monotonic() - begun < 4, "its output would stay open until the sleep ends"


@pytest.mark.long
def test_a_wire_is_as_long_thin_and_lossy_as_asked() -> None:
    network = uniform(2, bits_per_s=5e7, wire=Wire(latency_s=0.02, loss=0.02), seed=7)
    with Lab(
        replace(network, hosts=(network.hosts[0], replace(network.hosts[1], up_bits_per_s=1e7)))
    ) as lab:
        found = {(each.source, each.what): each for each in check(lab)}
        stats = lab.line_stats()
    assert found["host1", "rate"].requested == 1e7
    # Another test may have the cores: rates and lossy shares hold all the same, a round trip only
    # from below.
    assert all(each.ok for key, each in found.items() if key[1] != "rtt"), found
    assert 0.04 <= found["host0", "rtt"].measured < 0.4
    assert stats is not None
    assert stats.dropped == 0
    assert 0.015 < stats.lost / stats.seen < 0.025


def test_the_kernel_counts_what_was_sent() -> None:
    code = (
        "import os, socket, time\n"
        "if os.environ['RANK'] == '0':\n"
        "    time.sleep(0.5)\n"
        "    with socket.create_connection(('host1', 7000)) as s: s.sendall(bytes(3_000_000)); "
        "s.shutdown(1); s.recv(1)\n"
        "else:\n"
        "    s, n = socket.create_server(('', 7000)).accept()[0], 0\n"
        "    while d := s.recv(1 << 20): n += len(d)\n"
        "    assert n == 3_000_000\n"
    )
    with Lab(uniform(2, bits_per_s=1e9)) as lab:
        done = lab.run([sys.executable, "-c", code], timeout=30, on_line=lambda *_: None)
    assert done.worst == 0
    assert 3_000_000 < done.counts["host0"].sent_bytes < 3_000_000 * 1.06
    assert done.counts["host0"].sent_bytes == pytest.approx(
        done.counts["host1"].received_bytes, abs=2000
    )
    assert done.counts["host1"].sent_bytes < 300_000
    assert done.counts["host0"].dropped == 0


def test_a_schedule_changes_rates_and_cuts_hosts_off() -> None:
    watch = (
        "import socket, time, os\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); begun = time.monotonic()\n"
        "if os.environ['RANK'] == '0':\n"
        "    while time.monotonic() < begun + 2.5: s.sendto(b'.', ('host1', 7000)); "
        "time.sleep(0.01)\n"
        "else:\n"
        "    s.bind(('', 7000)); s.settimeout(3.5); s.recv(1); begun = last = time.monotonic(); "
        "gap = 0\n"
        "    while time.monotonic() < begun + 2.2:\n"
        "        s.recv(1); now = time.monotonic(); gap = max(gap, now - last); last = now\n"
        "    print(gap)\n"
    )
    changes = (
        Change(0.6, 0.8, cut=("host1",)),
        Change(0.2, up_bits_per_s=2e6, down_bits_per_s=2e6),
    )
    with Lab(uniform(2, bits_per_s=1e8, changes=changes)) as lab:
        heard, done = lines(lab, [sys.executable, "-c", watch], timeout=20)
        assert done.worst == 0
        assert 0.6 < float(heard["host1"][0]) < 2.0
        assert [due for due, _ in done.changes] == pytest.approx([0.2, 0.6, 1.4])
        assert all(0 <= at - due < 1.0 for due, at in done.changes)
        assert "100Mbit" in lab.call("host0", ["tc", "qdisc", "show", "dev", "eth0"]), (
            "it is as it was at first"
        )
        lab.apply(1.0)
        assert "2Mbit" in lab.call("host0", ["tc", "qdisc", "show", "dev", "eth0"])


RAN = """
import sys, time
def told():  # ns since boot; for each process ns on a core, and those waiting for one
    files = [open(f"/proc/{pid}/schedstat").read().split() for pid in sys.argv[1:]]
    return [time.monotonic_ns(), *(int(ns) for words in files for ns in words[:2])]
before = told()
time.sleep(1.5)
wall, *spent = (now - then for now, then in zip(told(), before))
print(*(each / wall for each in spent))
"""


def test_a_slowed_host_computes_slowly() -> None:
    """By the kernel's clocks: whatever else runs here takes from the time on a core, and what is
    stopped may first wait for one."""
    network = uniform(2)
    with Lab(
        replace(network, hosts=(network.hosts[0], replace(network.hosts[1], slow=4.0)))
    ) as lab:
        spins = [lab.popen(host, [sys.executable, "-c", "while True: pass"]) for host in lab.hosts]
        time.sleep(0.5)  # the brake looks for new processes every tenth of a second
        told = lab.call(None, [sys.executable, "-c", RAN, *(str(spin.pid) for spin in spins)])
    ran, waited, slow_ran, slow_waited = map(float, told.split())
    assert ran + waited > 0.9
    assert slow_ran < 0.3
    assert slow_ran + slow_waited > 0.2


def test_without_its_line_a_lab_stops() -> None:
    with Lab(uniform(2, wire=Wire(latency_s=0.005)), "queue") as lab:
        ask = "import socket; s = socket.create_connection(('host0', 7000), timeout=2)"
        serve = lab.popen(
            "host0",
            [
                sys.executable,
                "-c",
                "import socket, time; s = socket.create_server(('', 7000)); time.sleep(60)",
            ],
        )
        time.sleep(0.5)
        lab.call("host1", [sys.executable, "-c", ask])
        assert lab._line is not None
        assert lab._line.child is not None
        lab._line.child.signal(signal.SIGKILL)
        lab._line.child.wait(5)
        with pytest.raises(LabError, match="timed out"):
            lab.call("host1", [sys.executable, "-c", ask])
        with pytest.raises(LabError, match="the process that delays packets has ended"):
            lab.run(["sleep", "60"], grace=0.2)
        serve.stop(0.1)


def test_two_labs_at_once_know_nothing_of_each_other() -> None:
    with Lab(uniform(2, bits_per_s=1e8)) as one, Lab(uniform(2, bits_per_s=1e9)) as other:
        for lab in (one, other):
            lab.popen(
                "host0",
                [
                    sys.executable,
                    "-c",
                    "import socket, time; s = socket.create_server(('', 29511)); time.sleep(30)",
                ],
            )
        assert "100Mbit" in one.call("host1", ["tc", "qdisc", "show", "dev", "eth0"])
        assert "1Gbit" in other.call("host1", ["tc", "qdisc", "show", "dev", "eth0"])
        assert len([note for note in labs.listed() if note.owner == os.getpid()]) == 2


OWNER = """
import os, sys, time
from thinwire.lab import Lab
from thinwire.net import Wire, uniform
lab = Lab(uniform(2, wire=Wire(latency_s=0.005)))
lab.popen("host0", ["sleep", "300"])
if len(sys.argv) > 1 and os.fork() == 0:
    time.sleep(300)
print(lab._keeper.pid, flush=True)
time.sleep(300)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_lab_ends_with_its_owner(number: signal.Signals) -> None:
    with started([sys.executable, "-c", OWNER], stderr=subprocess.DEVNULL) as owner:
        assert owner.stdout is not None
        keeper = int(owner.stdout.readline())
        owner.send_signal(number)
        owner.wait(10)
        assert gone(keeper)


def test_a_lab_left_behind_is_found_and_ended() -> None:
    with started([sys.executable, "-c", OWNER, "fork"], start_new_session=True) as owner:
        assert owner.stdout is not None
        keeper = int(owner.stdout.readline())
        owner.kill()  # its fork still holds the socket
        owner.wait(10)
        try:
            assert not gone(keeper, within=0.5)
            with Lab(uniform(1)) as lab:
                assert [note.keeper for note in lab.stale if note.owner == owner.pid] == [keeper]
            assert gone(keeper)
        finally:
            os.killpg(owner.pid, signal.SIGKILL)


def gone(pid: int, within: float = 10.0) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_line_cleans_up_when_it_is_stopped(number: signal.Signals) -> None:
    command = [
        *THINWIRE,
        "lab",
        "run",
        "--hosts",
        "2",
        "--rtt",
        "5ms",
        "--grace",
        "1",
        "--",
        "sh",
        "-c",
        "echo up; sleep 60",
    ]
    with started(command, stderr=subprocess.PIPE) as ran:
        assert ran.stdout is not None
        assert ran.stdout.readline().endswith("up\n")
        ran.send_signal(number)
        assert ran.wait(20) == 128 + number


def test_the_command_line_as_json() -> None:
    command = [
        *THINWIRE,
        "lab",
        "run",
        "--json",
        "--hosts",
        "2",
        "--rate",
        "10mbit",
        "--loss",
        "1%",
        "--",
        "sh",
        "-c",
        "echo $RANK; exit 3",
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    told = json.loads(ran.stdout)
    assert ran.returncode == told["worst"] == 3
    assert told["network"]["congestion"] == "cubic"
    assert told["counts"]["host0"]["dropped"] == 0
    assert "[host1] 1" in ran.stderr


@pytest.mark.long
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root to become nobody"
)
def test_root_is_not_needed() -> None:
    python = shutil.which("python3", path="/usr/bin:/bin")  # one that nobody may run
    if (
        python is None
        or subprocess.run(
            [python, "-c", "import sys; assert sys.version_info >= (3, 11)"], check=False
        ).returncode
    ):
        pytest.skip("no Python 3.11 in /usr/bin")
    source = str(Path(__file__).parents[2] / "src")
    become = [
        "setpriv",
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
        "env",
        f"PYTHONPATH={source}",
    ]
    flags = ["--hosts", "2", "--rate", "100mbit", "--rtt", "20ms"]
    ran = subprocess.run(
        [*become, python, "-m", "thinwire", "lab", "check", "--json", *flags],
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
        check=False,
    )
    if "Permission denied" in ran.stderr or "No module named" in ran.stderr:
        pytest.skip("this checkout is not to be read by others")
    told = json.loads(ran.stdout)
    assert {each["what"] for each in told["findings"]} == {"rtt", "rate", "loss"}
    assert all(each["ok"] for each in told["findings"] if each["what"] != "rtt")


def refused(flags: list[str], **env: str) -> str:
    command = [*THINWIRE, "lab", "run", *flags, "--", "true"]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=os.environ | env
    )
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    return ran.stderr


def only(folder: Path, *names: str) -> str:
    """A path that leads to these programs and to no others."""
    for name in names:
        found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        assert found is not None
        (folder / name).symlink_to(found)
    return str(folder)


def test_bad_input_is_told_in_a_line(tmp_path: Path) -> None:
    assert "no congestion control 'warp'" in refused(["--congestion", "warp"])
    assert "expected a rate such as 100mbit" in refused(["--rate", "10zbit"])
    assert "--nodes and --inner-rate belong together" in refused(["--nodes", "2"])
    assert "cannot share 3 --hosts" in refused(
        ["--hosts", "3", "--nodes", "2", "--inner-rate", "1gbit"]
    )
    assert "No such file" in refused(["--file", str(tmp_path / "none.toml")])
    assert "leave out --rate" in refused(["--file", "x", "--rate", "1mbit"])
    assert "sysctl net.ipv4.no_such" in refused(["--sysctl", "net.ipv4.no_such=1"])
    assert "host.host9 is none of the hosts" in refused(["--slow", "host9=2"])


def test_a_machine_without_the_tools_or_the_rights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thinwire.lab import spaces

    def environment() -> dict[str, str]:
        return os.environ | {"PATH": str(tmp_path)}

    monkeypatch.setattr(spaces, "environment", environment)
    monkeypatch.setattr("thinwire.lab.delay.environment", environment)
    with pytest.raises(
        LabError, match=r"needs unshare and ip and tc: install iproute2 and util-linux"
    ):
        Lab(uniform(2))
    only(tmp_path, "ip", "tc", "sh")
    (tmp_path / "unshare").write_text(
        "#!/bin/sh\necho 'unshare: unshare failed: Operation not permitted' >&2; exit 1\n"
    )
    (tmp_path / "unshare").chmod(0o755)
    with pytest.raises(
        LabError,
        match=r"no network namespaces \(unshare: unshare failed: Operation not permitted\): ",
    ):
        Lab(uniform(2))
    (tmp_path / "unshare").unlink()
    only(tmp_path, "unshare", "mount")
    with Lab(uniform(2, bits_per_s=1e8)):
        pass
    with pytest.raises(LabError, match=r"iptables: install it"):
        Lab(uniform(2, wire=Wire(latency_s=0.05)), "queue")


def test_netem_where_the_kernel_has_it_and_a_refusal_where_not() -> None:
    with Lab(uniform(1)) as lab:
        there = has_netem(lab._switches)
    network = uniform(2, bits_per_s=1e8, wire=Wire(0.025, 0.005, 0.01))
    if not there:
        with pytest.raises(LabError, match=r"netem|qdisc kind is unknown"):
            Lab(network, "netem")
        return
    with Lab(network, "netem") as lab:
        assert all(each.ok for each in check(lab) if each.what != "rtt")


def test_hosts_may_be_many() -> None:
    with Lab(Network(uniform(16).hosts, wire=Wire(latency_s=0.005))) as lab:
        heard, done = lines(lab, ["hostname"])
    assert heard == {name: [name] for name in lab.hosts}
    assert done.worst == 0
