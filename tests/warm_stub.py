"""What `tests.warm.python_elsewhere` writes runs this: it stands on a lab's host for a program that
the server forks, and ends as it does. Standard library only, as it starts in 20 ms so."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import NoReturn


def stand_in(address: str, spaces: tuple[str, ...]) -> NoReturn:
    """Have the server fork what this process was asked to run, in namespaces of this process."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(address)
    fds = [os.open(f"/proc/self/ns/{name}", os.O_RDONLY) for name in spaces]
    message = {
        "words": sys.argv[1:],
        "env": dict(os.environ),
        "cwd": os.getcwd(),
        "spaces": spaces,
    }
    data = json.dumps(message).encode()
    socket.send_fds(sock, [len(data).to_bytes(8, "big")], [0, 1, 2, *fds])
    sock.sendall(data)
    lines = sock.makefile("r").read().split()  # its number, then its exit code
    code = int(lines[1]) if len(lines) == 2 else -signal.SIGKILL
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)
