"""Keep a lab and each of its hosts as their first process. Run by path, `python -I keeper.py FD`,
by `spaces.py`; standard library only.

It starts the commands that it receives over a socket, reports how each ended, and ends when the
other end of the socket closes, for any reason. It is process 1 of a process namespace: when it
ends, the
kernel ends every process of the lab, and the network namespaces go with them. `{"host": NAME}`
makes a copy of it with a network, host name and /sys of its own, which serves the socket that comes
along.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from typing import Any

NEWNS, NEWUTS, NEWNET = 0x00020000, 0x04000000, 0x40000000
BIND = 4096
libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> None:
    """A call of the C library, or what the system says against it."""
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def become_host(name: str, hosts_file: str) -> list[str]:
    """Leave the others' network, host name and mounts; return what could not be had."""
    call("unshare", NEWNET | NEWUTS | NEWNS)
    socket.sethostname(name)
    missing = []
    # Else /sys/class/net shows another network's interfaces. Without rights the lab goes on, and
    # notes it.
    try:
        call("mount", b"sysfs", b"/sys", b"sysfs", 0, None)
    except OSError as error:
        missing.append(f"/sys ({error.strerror})")
    # A bind mount lives on after its file is deleted.
    with tempfile.NamedTemporaryFile("w", prefix="thinwire-hosts-") as file:
        file.write(hosts_file)
        file.flush()
        os.chmod(file.name, 0o644)
        try:
            call("mount", file.name.encode(), b"/etc/hosts", None, BIND, None)
        except OSError as error:
            missing.append(f"/etc/hosts ({error.strerror})")
    return missing


class Keeper:
    """Serve one socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.running: dict[
            int, int
        ] = {}  # process number: the number of the request that started it

    def report(self, **message: Any) -> None:
        # The other end may be gone already: the next receive shows it.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.sock.send(json.dumps(message).encode())

    def serve(self) -> None:
        # Signals arrive through a socket, so that one select waits for both.
        awake, waker = socket.socketpair()
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while True:
            ready, _, _ = select.select([self.sock, awake], [], [])
            if awake in ready:
                awake.recv(4096)
                self.reap()
            if self.sock in ready:
                data, fds, _, _ = socket.recv_fds(self.sock, 1, 8)
                # The other end has closed, for whatever reason: as process 1 of the namespace, this
                # ends all in it.
                if not data:
                    os._exit(0)
                # A message may be longer than a socket takes, so it comes as an open file.
                with open(fds.pop(0), "rb") as file:
                    request = json.load(file)
                self.answer(request, fds)

    def answer(self, request: dict[str, Any], fds: list[int]) -> None:
        number = request["id"]
        try:
            if "argv" in request:
                self.start(number, request, fds)
            elif "signal" in request:
                for group in [
                    group for group, started in self.running.items() if started == number
                ]:
                    os.killpg(group, request["signal"])
            elif "host" in request:
                self.fork(number, request, fds[0])
        except OSError as error:
            self.report(id=number, error=f"{error.strerror or error}")
        # Descriptors of a request are its own, whatever became of it.
        finally:
            for fd in fds:
                os.close(fd)

    def start(self, number: int, request: dict[str, Any], fds: list[int]) -> None:
        child = subprocess.Popen(
            request["argv"],
            stdin=fds[0],
            stdout=fds[1],
            stderr=fds[2],
            env=request["env"],
            cwd=request["cwd"],
            start_new_session=True,
        )
        child.returncode = 0  # `reap` waits for it
        self.running[child.pid] = number
        self.report(id=number, pid=child.pid)

    def fork(self, number: int, request: dict[str, Any], fd: int) -> None:
        pid = os.fork()
        if pid:
            self.report(id=number, pid=pid)
            return
        # The child keeps a host: its own socket, its own namespaces, and no way back to the
        # parent's code.
        try:
            self.sock.close()
            keeper = Keeper(socket.socket(fileno=os.dup(fd)))
            os.close(fd)
            keeper.report(id=0, missing=become_host(request["host"], request["hosts_file"]))
            keeper.serve()
        except OSError as error:
            keeper.report(id=0, error=error.strerror)
        finally:
            os._exit(1)

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            number = self.running.pop(pid, None)
            if number is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)  # what it has left running
                self.report(id=number, code=os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(
            each, lambda *_: None
        )  # the lab ends when its owner lets go of the socket; commands must not inherit SIG_IGN
    Keeper(socket.socket(fileno=int(sys.argv[1]))).serve()
