"""Which labs there are on this machine: a note for each in a folder of its user, locked while its owner lives.

A lab normally ends with its owner, however that ends. What could outlive it is a lab whose owner was forked and then killed: the copy still
holds the socket. Such a lab is found by its unlocked note, and ended. The lock is a POSIX record lock: no fork holds it, but closing any
descriptor of its file drops it, so a process never opens its own notes a second time.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from thinwire.errors import LabError


@dataclass(frozen=True, slots=True)
class Note:
    """A lab. owner, keeper: processes; begun: when, in seconds since 1970; alive: whether its owner is."""

    path: Path
    owner: int
    keeper: int
    keeper_began: str
    begun: float
    hosts: tuple[str, ...]
    alive: bool


_own: dict[Path, Note] = {}  # of this process, or of the one that it was forked from


def folder() -> Path:
    """Where the notes lie."""
    return Path(tempfile.gettempdir()) / f"thinwire-lab-{os.getuid()}"


def write(keeper: int, hosts: tuple[str, ...]) -> tuple[Path, int]:
    """Leave a note; the descriptor holds its lock for as long as this process, and nothing it forks, holds it.

    Raises:
        LabError: nothing can be written there.
    """
    path = folder() / f"{os.getpid()}-{keeper}.json"
    note = Note(path, os.getpid(), keeper, _began(keeper), time.time(), hosts, alive=True)
    told = {"owner": note.owner, "keeper": keeper, "keeper_began": note.keeper_began, "begun": note.begun, "hosts": list(hosts)}
    _own[path] = note
    try:
        folder().mkdir(mode=0o700, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        del _own[path]
        raise LabError(f"a lab cannot be noted in {folder()} ({error.strerror}): remove what lies there, or set TMPDIR") from error
    fcntl.lockf(fd, fcntl.LOCK_EX)  # before there is anything to read: an unlocked note is taken for one left behind
    os.write(fd, json.dumps(told).encode())
    return path, fd


def remove(path: Path, fd: int) -> None:
    """Take a note back."""
    path.unlink(missing_ok=True)
    os.close(fd)
    _own.pop(path, None)


def listed() -> list[Note]:
    """Every lab of this user."""
    found = []
    for path in sorted(folder().glob("*.json")):
        own = _own.get(path)
        if own is not None and own.owner == os.getpid():
            found.append(own)
            continue
        with contextlib.suppress(OSError, ValueError, KeyError):  # removed meanwhile, or half written
            told = json.loads(path.read_text())
            found.append(
                Note(path, told["owner"], told["keeper"], told["keeper_began"], told["begun"], tuple(told["hosts"]), _locked(path))
            )
    return found


def clean() -> list[Note]:
    """End labs whose owner is gone, and take their notes away; returns those that were still there."""
    ended = []
    for note in listed():
        if note.alive:
            continue
        if note.keeper_began and _began(note.keeper) == note.keeper_began:  # not another process of the same number
            with contextlib.suppress(ProcessLookupError):
                os.kill(note.keeper, signal.SIGKILL)
                ended.append(note)
        note.path.unlink(missing_ok=True)
    return ended


def _locked(path: Path) -> bool:
    with open(path, "r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _began(pid: int) -> str:
    """When a process began, in the kernel's ticks; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
