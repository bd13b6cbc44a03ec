"""Segments are counted by the kernel, over this process's connections."""

from __future__ import annotations

import socket
import sys

import pytest

from thinwire.drive import segments as module
from thinwire.drive.segments import segments


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        there, _ = server.accept()
    return here, there


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's tcp_info is Linux's")
def test_what_a_connection_sends_is_counted_and_the_connection_stays_open() -> None:
    here, there = connected()
    before, _ = segments()
    for _ in range(3):
        here.sendall(b"x" * 100)
        assert there.recv(100) == b"x" * 100
    after, again = segments()
    assert after - before >= 3
    assert again >= 0
    here.sendall(b"y")
    assert there.recv(1) == b"y"
    here.close()
    there.close()


def test_other_systems_count_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "platform", "darwin")
    assert segments() == (0, 0)
