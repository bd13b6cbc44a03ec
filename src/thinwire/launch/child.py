"""Serve the launcher that started a rank: end with it, stop on a signal, report errors.

The variables are torchrun's, so a rank that torchrun started does the same.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from thinwire import env
from thinwire.errors import ConfigError
from thinwire.text.output import one_line

LAUNCHER = "THINWIRE_LAUNCHED"  # the id of our launcher's process, which prints the JSON of a run
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
REPEAT_S = 2.0  # a launcher repeats a signal at once; a person takes longer


def write_error(message: str, printed: bool) -> None:
    """Write a rank's last error into the file that its launcher reads, if there is one.

    Args:
        message: the error in one line.
        printed: whether this rank has printed it, so that the launcher need not.
    """
    path = env.text(ERROR_FILE)
    if path:
        content = {
            "message": one_line(message),
            "printed": printed,
            "extraInfo": {"timestamp": int(time.time())},
        }
        Path(path).write_text(json.dumps({"message": content}), encoding="utf-8")


def read_error(file: Path) -> tuple[str, bool]:
    """Read a rank's error file: its message, and whether the rank has printed it itself.

    A file that is absent or holds something else gives an empty message: ranks of other programs
    write what they like.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))["message"]
        return str(content["message"]), bool(content["printed"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", False


def end_with_parent() -> None:
    """Have the kernel kill this process when its launcher ends (Linux only).

    Raises:
        ConfigError: the kernel refused.
    """
    if sys.platform != "linux" or not env.is_set("TORCHELASTIC_RUN_ID"):
        return
    pr_set_pdeathsig = 1
    if ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0):
        raise ConfigError(
            "the kernel refused to tie this worker to its launcher: "
            f"{os.strerror(ctypes.get_errno())}"
        )
    # the launcher may have ended before the call
    if env.text(LAUNCHER, str(os.getppid())) != str(os.getppid()):
        os._exit(1)


class StopSignal:
    """Record the signal to stop; `number` is 0 until one arrives.

    The process does not end at once, because all ranks save first. A launcher that has lost one
    rank also signals the others, and they need about two seconds to find out which rank is lost.
    A second signal after `REPEAT_S` ends the process.
    """

    def __init__(self) -> None:
        self.number = 0
        self._first_s = 0.0

    def _record(self, number: int, _: Any) -> None:
        if self.number and time.monotonic() - self._first_s > REPEAT_S:
            os._exit(128 + number)
        self.number = self.number or number
        self._first_s = self._first_s or time.monotonic()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGTERM and SIGINT inside the block."""
        before = {
            number: signal.signal(number, self._record)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end the process at once inside the block.

    Use it around calls that wait in C++ for other ranks: Python's own handler would not run there.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
