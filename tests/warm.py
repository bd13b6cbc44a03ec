"""Python programs started in a second less: forked from a server that has torch loaded.

A process that imports torch, Dynamo and transformers spends five seconds of a core before its first
line. Here a server has imported them once. `WarmPopen` asks it for a fork, which then becomes the
program: its arguments, variables, folder and descriptors are those asked for, and Python programs
that it starts itself are forks of it in turn, with it as their parent. `python_elsewhere` writes a
program in the place of `sys.executable` that does the same from inside a lab's host.

What a fork does not show is how a program starts on its own: /proc/PID/environ and cmdline are the
server's, and all modules are there already. So of every kind of program some test starts a cold
one.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import multiprocessing
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tests.members import ROOT
from tests.ranks import context

FAMILY = "THINWIRE_TEST_FAMILY"  # a folder in which forks note their variables, a file a process
COLD = ("thinwire.train.memory",)  # measures how much a process of its own takes
SPACES = {"user": 0x10000000, "net": 0x40000000, "uts": 0x04000000, "mnt": 0x00020000}  # setns's
DEATH = 1  # PR_SET_PDEATHSIG
libc = ctypes.CDLL(None, use_errno=True)


class WarmPopen:
    """A program that the server forks; the part of `subprocess.Popen` that tests use.

    Args:
        command: as for `subprocess.Popen`, `sys.executable` first.
        env: its variables.
        cwd: its folder.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
    ) -> None:
        assert command[0] == sys.executable, command
        self.args = list(command)
        self.returncode: int | None = None
        self._out, self._err = os.memfd_create("out"), os.memfd_create("err")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(address())
        with open(os.devnull, "rb") as nothing:
            ask(
                self._socket,
                {
                    "words": self.args[1:],
                    "env": dict(os.environ if env is None else env),
                    "cwd": str(cwd or os.getcwd()),
                },
                [nothing.fileno(), self._out, self._err],
            )
        self._lines = self._socket.makefile("r")
        self.pid = int(self._lines.readline())

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended; return its exit code, -n where signal n ended it."""
        if self.returncode is None:
            self._socket.settimeout(timeout)
            try:
                self.returncode = int(self._lines.readline())
            except TimeoutError:
                self._lines = self._socket.makefile("r")  # one that timed out reads no more
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            self._socket.close()
        return self.returncode

    def poll(self) -> int | None:
        """Return its exit code, or `None` while it goes on."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(1e-3)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait until it has ended; return what it wrote to standard output and error."""
        self.wait(timeout)
        return tuple(os.pread(each, 1 << 26, 0).decode() for each in (self._out, self._err))  # type: ignore[return-value]

    def send_signal(self, number: int) -> None:
        """Signal it, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def __del__(self) -> None:
        self._socket.close()
        os.close(self._out)
        os.close(self._err)


def run(
    command: Sequence[str],
    env: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    timeout: float = 240,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, as `subprocess.run` with its output captured as text."""
    process = WarmPopen(command, env, cwd)
    try:
        out, err = process.communicate(timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.wait(), out, err)


def python_elsewhere(folder: Path, *spaces: str) -> Path:
    """Write a program that takes the place of `sys.executable` in other namespaces.

    Args:
        folder: where it is written.
        spaces: what the program enters with who starts it: "net", "uts", "mnt".
    """
    path = folder / "python"
    path.write_text(
        f"#!{sys.executable} -IS\n"
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        f"from tests.warm_stub import stand_in\nstand_in({address()!r}, {('user', *spaces)!r})\n"
    )
    path.chmod(0o755)
    return path


_address: list[str] = []


def address() -> str:
    """The socket of this session's server, which the first call starts."""
    if not _address:
        folder = tempfile.TemporaryDirectory(prefix="thinwire-warm-")
        atexit.register(folder.cleanup)
        path = os.path.join(folder.name, "socket")
        server = context.Process(target=_serve, args=(path,), daemon=True)
        server.start()
        while not os.path.exists(path):
            assert server.is_alive(), "the server of warm programs ended before it began"
            time.sleep(0.01)
        _address.append(path)
    return _address[0]


def ask(sock: socket.socket, message: Mapping[str, Any], fds: Sequence[int]) -> None:
    """Send a request: its length with the descriptors, then the text."""
    data = json.dumps(message).encode()
    socket.send_fds(sock, [len(data).to_bytes(8, "big")], list(fds))
    sock.sendall(data)


def _asked(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Receive a request."""
    head, fds, _, _ = socket.recv_fds(sock, 8, 8)
    size, data = int.from_bytes(head, "big"), b""
    while len(data) < size:
        data += sock.recv(size - len(data))
    return json.loads(data), fds


def _serve(path: str) -> None:
    """Fork a process for each request; send back its number, and its exit code once it has one."""
    libc.prctl(DEATH, signal.SIGKILL, 0, 0, 0)
    awake, waker = socket.socketpair()
    waker.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker.fileno())
    running: dict[int, socket.socket] = {}
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
        selectors.DefaultSelector() as ready,
    ):
        listener.bind(path + ".new")
        listener.listen(64)
        os.rename(path + ".new", path)
        ready.register(listener, selectors.EVENT_READ)
        ready.register(awake, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fileobj is listener:
                    sock, _ = listener.accept()
                    message, fds = _asked(sock)
                    pid = os.fork()
                    if not pid:
                        spaces = dict(zip(message.get("spaces", ()), fds[3:], strict=True))
                        _become(message["words"], message["env"], message["cwd"], fds[:3], spaces)
                    for fd in fds:
                        os.close(fd)
                    running[pid] = sock
                    sock.sendall(f"{pid}\n".encode())
                    ready.register(sock, selectors.EVENT_READ)
                elif key.fileobj is awake:
                    awake.recv(4096)
                else:  # who asked is gone, and its program with it
                    ready.unregister(key.fileobj)
                    for pid, sock in running.items():
                        if sock is key.fileobj:
                            os.kill(pid, signal.SIGKILL)
            while running and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                sock = running.pop(ended[0])
                with contextlib.suppress(OSError, KeyError):
                    sock.sendall(f"{os.waitstatus_to_exitcode(ended[1])}\n".encode())
                    ready.unregister(sock)
                sock.close()


class _Forking(subprocess.Popen):  # type: ignore[type-arg]
    """`subprocess.Popen` that forks this process where a Python program is to be started."""

    def _execute_child(self, *how: Any) -> None:  # type: ignore[override]
        (command, _, _, _, _, cwd, env, _, _, shell, *pipes, _, _, _, _, _, session, _) = how
        words = [] if shell or isinstance(command, str) else [os.fspath(each) for each in command]
        if words[:1] != [sys.executable] or not _forkable(words[1:]):
            super()._execute_child(*how)  # type: ignore[misc]
            return
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = pipes
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.pid = os.fork()
        if not self.pid:
            fds = [
                number if fd == -1 else fd
                for number, fd in enumerate((p2cread, c2pwrite, errwrite))
            ]
            _become(words[1:], dict(os.environ if env is None else env), cwd, fds, {}, session)
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]


def _forkable(words: Sequence[str]) -> bool:
    words = [word for word in words if word != "-u"]
    if words[:1] == ["-m"]:
        return words[1] not in COLD
    return words[:1] == ["-c"] or not words[0].startswith("-")


def _become(
    words: Sequence[str],
    env: Mapping[str, str],
    cwd: str | None,
    fds: Sequence[int],
    spaces: Mapping[str, int],
    session: bool = False,
) -> NoReturn:
    """Turn this fork into a Python program, as exec would, and end with it."""
    code = 1
    try:
        # 1. What the kernel knows of a process.
        atexit._clear()  # of the process that this was forked from
        if session:
            os.setsid()
        _enter(spaces)
        copies = [os.dup(fd) for fd in fds]  # one may have a number that another is to have
        for number, fd in enumerate(copies):
            os.dup2(fd, number)
        os.closerange(3, 1 << 16)
        signal.set_wakeup_fd(-1)
        for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if cwd is not None:
            os.chdir(cwd)
        # 2. What the interpreter knows of it.
        os.environ.clear()
        os.environ.update(env)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(  # noqa: SIM115
            2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False
        )
        sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
        _forget()
        # 3. The program.
        if FAMILY in env:
            note = Path(env[FAMILY], str(os.getpid()))
            note.write_bytes(b"\0".join(f"{name}={env[name]}".encode() for name in env))
        code = _program([word for word in words if word != "-u"])
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _enter(spaces: Mapping[str, int]) -> None:
    """Enter the namespaces of the process that asked, its user's first: it gives the right."""
    for name, fd in spaces.items():
        own = os.open(f"/proc/self/ns/{name}", os.O_RDONLY)
        if not os.path.sameopenfile(fd, own) and libc.setns(fd, SPACES[name]):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)


def _forget() -> None:
    """Drop what libraries remember of the process that this was forked from."""
    import torch

    subprocess.Popen = _Forking  # type: ignore[misc]
    tempfile.tempdir = None
    process = multiprocessing.current_process()
    process._config.pop("daemon", None)  # type: ignore[attr-defined]  # which may have no children
    process.name = "MainProcess"
    multiprocessing.process._parent_process = None  # type: ignore[attr-defined]
    from multiprocessing import forkserver, resource_tracker

    resource_tracker._resource_tracker._fd = resource_tracker._resource_tracker._pid = None  # type: ignore[attr-defined]
    server = forkserver._forkserver  # type: ignore[attr-defined]
    server._forkserver_address = server._forkserver_alive_fd = server._forkserver_pid = None
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", cores)))


def _program(words: Sequence[str]) -> int:
    """Run what follows `python` on a command line; return the exit code."""
    try:
        if words[0] == "-m":
            sys.argv = list(words[1:])
            sys.path.insert(0, os.getcwd())
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            sys.path.insert(0, "")
            exec(words[1], {"__name__": "__main__"})
        else:
            sys.argv = list(words)
            sys.path.insert(0, os.path.dirname(os.path.abspath(words[0])))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return 0
