"""Commands in a space, over the socket of a keeper that these tests play; and machines that allow
no space."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from thinwire.errors import LabError
from thinwire.lab import spaces
from thinwire.lab.spaces import Child, Space

Message = dict[str, Any]
Play = Callable[[Message, list[int]], list[Message]]


class Keeper:
    """Answers each message of a space as `play` says, which is given the descriptors, too."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.seen = sock, []
        self.play: Play = lambda message, _: [{"id": message["id"], "pid": 7}]
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            data, fds, _, _ = socket.recv_fds(self.sock, 16, 8)
            if not data:
                return
            message = json.loads(os.pread(fds[0], 1 << 20, 0))
            self.seen.append(message)
            for reply in self.play(message, fds[1:]):
                self.sock.send(json.dumps(reply).encode())
            for each in fds:
                os.close(each)


@pytest.fixture
def joined() -> Iterator[tuple[Space, Keeper]]:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    space, keeper = Space("host0", here), Keeper(there)
    space.begin()
    yield space, keeper
    space.close()
    keeper.thread.join(5)
    there.close()


def ends(code: int, out: str = "", err: str = "") -> Play:
    """A command that writes to its descriptors and ends."""

    def play(message: Message, fds: list[int]) -> list[Message]:
        os.write(fds[1], out.encode())
        os.write(fds[2], err.encode())
        return [{"id": message["id"], "pid": 7}, {"id": message["id"], "code": code}]

    return play


def test_a_command_has_its_output_and_its_own_variables(joined: tuple[Space, Keeper]) -> None:
    space, keeper = joined
    keeper.play = ends(0, out="two words\n")
    assert space.call(["echo", "two words"]) == "two words\n"
    (message,) = keeper.seen
    assert message["argv"] == ["echo", "two words"]
    assert message["env"] == spaces.environment()
    assert message["cwd"] == os.getcwd()


def test_a_command_reads_the_text_that_it_is_given(joined: tuple[Space, Keeper]) -> None:
    space, keeper = joined

    def play(message: Message, fds: list[int]) -> list[Message]:
        os.write(fds[1], os.pread(fds[0], 100, 0).upper())
        return ends(0)(message, fds)

    keeper.play = play
    assert space.call(["tc", "-b"], text="qdisc add\n") == "QDISC ADD\n"


@pytest.mark.parametrize(
    ("out", "err", "why"),
    [
        ("", "no such device", "no such device"),
        ("said here", "", "said here"),
        ("", "", "exit code 3"),
    ],
)
def test_a_command_that_fails_has_its_reason_in_the_error(
    joined: tuple[Space, Keeper], out: str, err: str, why: str
) -> None:
    space, keeper = joined
    keeper.play = ends(3, out, err)
    with pytest.raises(LabError, match=f"^host0: ip link failed: {why}$"):
        space.call(["ip", "link"])
    assert space.call(["ip", "link"], allowed=True) == out


def test_a_command_that_takes_too_long_is_stopped(joined: tuple[Space, Keeper]) -> None:
    space, keeper = joined

    def play(message: Message, _: list[int]) -> list[Message]:
        if "signal" in message:
            return [{"id": message["id"], "code": -message["signal"]}]
        return [{"id": message["id"], "pid": 7}]

    keeper.play = play
    with pytest.raises(LabError, match=r"host0: sleep 9 was not done within 0\.01 s"):
        space.call(["sleep", "9"], timeout=0.01)
    assert keeper.seen[-1] == {"id": 1, "signal": signal.SIGTERM}


def test_a_command_that_ignores_the_signal_is_killed(joined: tuple[Space, Keeper]) -> None:
    space, keeper = joined

    def play(message: Message, _: list[int]) -> list[Message]:
        if "signal" not in message:
            return [{"id": message["id"], "pid": 7}]
        if message["signal"] == signal.SIGTERM:
            return []
        return [{"id": message["id"], "code": -signal.SIGKILL}]

    keeper.play = play
    child = space.popen(["trap"])
    assert child.pid == 7
    assert child.wait(0.0) is None
    assert child.stop(0.01) == -signal.SIGKILL
    assert [each.get("signal") for each in keeper.seen] == [None, signal.SIGTERM, signal.SIGKILL]


def test_commands_side_by_side_have_their_own_ends(joined: tuple[Space, Keeper]) -> None:
    space, keeper = joined
    one, two = space.popen(["one"]), space.popen(["two"])
    keeper.sock.send(json.dumps({"id": two.number, "code": 5}).encode())
    assert two.wait(5) == 5
    assert one.code is None
    keeper.sock.send(json.dumps({"id": 99, "code": 1}).encode())  # of no command here
    keeper.sock.send(json.dumps({"id": one.number, "code": 0}).encode())
    assert one.wait(5) == 0


def test_a_command_that_cannot_be_started_is_an_error(joined: tuple[Space, Keeper]) -> None:
    space, keeper = joined
    keeper.play = lambda message, _: [{"id": message["id"], "error": "No such file"}]
    with pytest.raises(LabError, match="host0: cannot run 'nowhere': No such file"):
        space.popen(["nowhere"])


def test_where_the_keeper_is_gone_commands_have_ended_and_none_begins(
    joined: tuple[Space, Keeper],
) -> None:
    space, keeper = joined
    child = space.popen(["sleep"])
    keeper.sock.shutdown(socket.SHUT_RDWR)
    assert child.wait(5) == -signal.SIGKILL
    assert child.stop(0.1) == -signal.SIGKILL
    with pytest.raises(LabError, match="host0: the lab is gone"):
        space.popen(["sleep"])


def test_a_host_is_a_space_of_its_own(joined: tuple[Space, Keeper]) -> None:
    space, keeper = joined
    inner: list[socket.socket] = []

    def play(message: Message, fds: list[int]) -> list[Message]:
        assert message["host"] == "host1"
        inner.append(socket.socket(fileno=os.dup(fds[0])))
        inner[0].send(json.dumps({"missing": ["a hosts file"]}).encode())
        return [{"id": message["id"], "pid": 12}]

    keeper.play = play
    host, pid, missing = space.host("host1", "127.0.0.1 localhost")
    assert (host.name, pid, missing) == ("host1", 12, ["a hosts file"])
    inner[0].shutdown(socket.SHUT_RDWR)
    host.close()
    inner[0].close()


def test_a_host_without_a_network_is_an_error(joined: tuple[Space, Keeper]) -> None:
    space, keeper = joined

    def play(message: Message, fds: list[int]) -> list[Message]:
        os.write(fds[0], json.dumps({"error": "no veth"}).encode())
        return [{"id": message["id"], "pid": 12}]

    keeper.play = play
    with pytest.raises(LabError, match="no network for host1: no veth"):
        space.host("host1", "")


def test_a_child_takes_in_its_messages_in_order() -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = Child(Space("host0", here), 1, ["x"])
    assert not child.receive({"pid": 3})
    assert child.receive({"code": 0}), "the last"
    child.lost()
    assert child.code == 0, "what has ended stays as it ended"
    here.close()
    there.close()


def test_programs_that_are_missing_are_named_with_their_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spaces, "environment", lambda: {"PATH": str(tmp_path)})
    (tmp_path / "unshare").touch(0o755)
    with pytest.raises(
        LabError,
        match=r"a lab needs ip and tc: install iproute2, as in apt-get install iproute2$",
    ):
        spaces.switches()


def test_another_system_is_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(spaces.sys, "platform", "darwin")
        with pytest.raises(LabError, match="network namespaces, and this is darwin: run it in a"):
            spaces.switches()


def test_the_folders_of_ip_and_tc_are_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/bin")
    monkeypatch.setenv("OTHER", "kept")
    found = spaces.environment()
    assert found["PATH"].split(os.pathsep) == ["/bin", "/usr/sbin", "/sbin"]
    assert found["OTHER"] == "kept"
