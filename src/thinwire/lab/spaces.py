"""Run a lab's commands in spaces: one for the switches and one for each host.

A space has a network of its own: a keeper process and a socket to it. All of them live in one
process namespace, which ends when this process closes the sockets: by `close`, by Ctrl-C, or
because it was killed. Nothing of the machine's own network is touched or seen.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thinwire import env
from thinwire.errors import LabError
from thinwire.text.words import first_line

KEEPER = Path(__file__).with_name("keeper.py")
ANSWER_S = 20.0  # for a keeper, which only starts things
NEEDED = {"unshare": "util-linux", "ip": "iproute2", "tc": "iproute2"}


class Child:
    """Hold a command that runs in a space. pid: its number as the lab's processes see it."""

    def __init__(self, space: Space, number: int, argv: Sequence[str]) -> None:
        self.space, self.number, self.argv = space, number, list(argv)
        self.pid: int | None = None
        self.code: int | None = None
        self._answered, self._ended = threading.Event(), threading.Event()
        self._error = ""

    def wait(self, timeout: float | None = None) -> int | None:
        """Return its exit code, -n where signal n ended it, or `None` where it goes on."""
        self._ended.wait(timeout)
        return self.code

    def signal(self, number: int) -> None:
        """Send a signal to it and what it has started."""
        if self.code is None:
            self.space.send({"id": self.number, "signal": int(number)})

    def stop(self, grace: float) -> int:
        """Ask it to end; after `grace` seconds make it."""
        try:
            self.signal(signal.SIGTERM)
            if self.wait(grace) is None:
                self.signal(signal.SIGKILL)
        except LabError:
            self.lost()
        code = self.wait(ANSWER_S)
        return -signal.SIGKILL if code is None else code

    def receive(self, message: Mapping[str, Any]) -> bool:
        """Take in one message of the keeper's; return whether it was the last."""
        if "pid" in message:
            self.pid = message["pid"]
        elif "error" in message:
            self._error = message["error"]
        else:
            self.code = message["code"]
            self._ended.set()
        self._answered.set()
        return self.code is not None or bool(self._error)

    def started(self) -> Child:
        """Wait until it runs, and return it.

        Raises:
            LabError: it cannot be started.
        """
        self._answered.wait(ANSWER_S)
        if self._error or not self._answered.is_set():
            raise LabError(
                f"{self.space.name}: cannot run {self.argv[0]!r}: "
                f"{self._error or 'no answer from the lab'}"
            )
        return self

    def lost(self) -> None:
        """Mark the command as ended because its space is gone."""
        if self.code is None:
            self.code = -int(signal.SIGKILL)
            self._error = self._error or ("" if self.pid else "the lab is gone")
            self._answered.set()
            self._ended.set()


class Space:
    """Start commands in one space over its keeper's socket."""

    def __init__(self, name: str, sock: socket.socket) -> None:
        self.name, self._sock = name, sock
        self._numbers = itertools.count(1)
        self._children: dict[int, Child] = {}
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, name=f"lab {name}", daemon=True)

    def begin(self) -> None:
        """Start to listen."""
        self._reader.start()

    def popen(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Child:
        """Start a command with these descriptors (None: /dev/null).

        Raises:
            LabError: it cannot be started.
        """
        with open(os.devnull, "r+b") as null:
            fds = [null.fileno() if fd is None else fd for fd in (stdin, stdout, stderr)]
            child = self._ask(
                argv,
                {
                    "argv": list(argv),
                    "env": dict(environment() if env is None else env),
                    "cwd": cwd or os.getcwd(),
                },
                fds,
            )
        return child.started()

    def call(
        self, argv: Sequence[str], text: str = "", allowed: bool = False, timeout: float = ANSWER_S
    ) -> str:
        """Run a command with `text` as standard input, and return its standard output.

        Raises:
            LabError: it fails (unless `allowed`), or is not done after `timeout` seconds.
        """
        # Files, not pipes: nothing blocks, whatever the command writes.
        with _file(text) as given, _file() as out, _file() as err:
            child = self.popen(argv, stdin=given.fileno(), stdout=out.fileno(), stderr=err.fileno())
            code = child.wait(timeout)
            if code is None:
                child.stop(1.0)
                raise LabError(f"{self.name}: {' '.join(argv)} was not done within {timeout:g} s")
            output, complaint = (
                os.pread(each.fileno(), 1 << 24, 0).decode(errors="replace") for each in (out, err)
            )
        if code and not allowed:
            raise LabError(
                f"{self.name}: {' '.join(argv)} failed: "
                f"{complaint.strip() or output.strip() or f'exit code {code}'}"
            )
        return output

    def host(self, name: str, hosts_file: str) -> tuple[Space, int, list[str]]:
        """Make a new host: its space, its process number, and what it could not have of its own."""
        # 1. Have the keeper fork a host; the new host answers over its own socket.
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with there:
            child = self._ask(
                ["host"], {"host": name, "hosts_file": hosts_file}, [there.fileno()]
            ).started()
        here.settimeout(ANSWER_S)
        # 2. Wait for it to have its network.
        try:
            answer = here.recv(1 << 17)
        except TimeoutError:
            answer = b""
        reply = json.loads(answer or b'{"error": "no answer"}')
        if "error" in reply:
            here.close()
            raise LabError(f"no network for {name}: {reply['error']}")
        here.settimeout(None)
        space = Space(name, here)
        space.begin()
        assert child.pid is not None
        return space, child.pid, reply["missing"]

    def send(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        """Send the keeper a message, in a file: an environment may be too long for a socket."""
        try:
            with self._lock, _file(json.dumps(message)) as file:
                socket.send_fds(self._sock, [b"."], [file.fileno(), *fds])
        except OSError as error:
            raise LabError(f"{self.name}: the lab is gone ({first_line(error)})") from error

    def close(self) -> None:
        """Close the socket: the keeper ends, and what it has started with it."""
        with contextlib.suppress(OSError):  # it has ended already
            self._sock.shutdown(socket.SHUT_RDWR)
        if self._reader.is_alive():
            self._reader.join(ANSWER_S)
        self._sock.close()

    def _ask(self, argv: Sequence[str], message: dict[str, Any], fds: Sequence[int]) -> Child:
        child = Child(self, next(self._numbers), argv)
        self._children[child.number] = child
        self.send({"id": child.number, **message}, fds)
        return child

    def _read(self) -> None:
        while True:
            # When the keeper has gone, everything that it started has: release whoever waits.
            try:
                data = self._sock.recv(1 << 17)
            except OSError:
                data = b""
            if not data:
                break
            message = json.loads(data)
            child = self._children.get(message["id"])
            if child is not None and child.receive(message):
                self._children.pop(child.number, None)
        for child in list(self._children.values()):
            child.lost()


def switches() -> tuple[Space, subprocess.Popen[bytes]]:
    """Return the first space of a new lab, and the process that keeps it.

    It works as root or, by a user namespace, as anybody.

    Raises:
        LabError: a program is missing, or this machine allows no namespaces.
    """
    # 1. Refuse what cannot be here, with what to install.
    if sys.platform != "linux":
        raise LabError(
            f"a lab needs Linux's network namespaces, and this is {sys.platform}: run it in a "
            "Linux virtual machine"
        )
    if missing := [
        name for name in NEEDED if shutil.which(name, path=environment()["PATH"]) is None
    ]:
        packages = sorted({NEEDED[name] for name in missing})
        raise LabError(
            f"a lab needs {' and '.join(missing)}: install {' and '.join(packages)}, as in "
            f"apt-get install {' '.join(packages)}"
        )
    # 2. The keeper, as process 1 of new namespaces; without root a user namespace makes that
    # possible.
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    keeper_argv = [sys.executable, "-I", str(KEEPER), str(there.fileno())]
    with _file() as err:
        with there:
            keeper = subprocess.Popen(
                [
                    "unshare",
                    *user,
                    "--net",
                    "--mount",
                    "--pid",
                    "--fork",
                    "--kill-child",
                    "--mount-proc",
                    *keeper_argv,
                ],
                stdin=subprocess.DEVNULL,
                stdout=err,
                stderr=err,
                pass_fds=[there.fileno()],
                start_new_session=True,
                env=environment(),
            )
        # 3. A first command shows whether it works; what unshare wrote is the reason if not.
        space = Space("the switches", here)
        space.begin()
        try:
            space.call(["ip", "link", "set", "lo", "up"])
        except LabError as error:
            space.close()
            keeper.wait(ANSWER_S)
            raise _not_allowed(
                os.pread(err.fileno(), 4096, 0).decode(errors="replace").strip()
                or first_line(error)
            ) from error
    return space, keeper


def _not_allowed(reason: str) -> LabError:
    who = "root" if os.geteuid() == 0 else "a user without root"
    do = (
        "give the container CAP_SYS_ADMIN and CAP_NET_ADMIN (docker run --privileged)"
        if os.geteuid() == 0
        else (
            "run as root, or allow it: sysctl kernel.unprivileged_userns_clone=1 (Ubuntu: "
            "kernel.apparmor_restrict_unprivileged_userns=0)"
        )
    )
    return LabError(f"this machine gives {who} no network namespaces ({reason}): {do}")


def environment() -> dict[str, str]:
    """Return this process's variables, with the folders of ip and tc added to PATH."""
    return env.copy() | {
        "PATH": os.pathsep.join([env.text("PATH", os.defpath), "/usr/sbin", "/sbin"])
    }


def _file(text: str = "") -> Any:
    file = tempfile.TemporaryFile()  # noqa: SIM115  (the caller closes it)
    file.write(text.encode())
    file.seek(0)
    return file
