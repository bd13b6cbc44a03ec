"""List the labs on this machine: a note for each in a folder of its user, locked while its owner
lives.

A lab normally ends with its owner, however that ends. What could outlive it is a lab whose owner
was forked and then killed: the copy still holds the socket. Such a lab is found by its unlocked
note, and ended. The lock is a POSIX record lock: no fork holds it, but closing any descriptor of
its file drops it, so a process never opens its own notes a second time.

A note names a process to kill. So it is believed only where `private` vouches for its folder and
file, and the process is ended only where it is this user's and began when the note says.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from thinwire.errors import LabError
from thinwire.lab import private


@dataclass(frozen=True, slots=True)
class Note:
    """A lab. owner, keeper: processes; begun: when, in seconds since 1970; alive: whether its owner
    is."""

    path: Path
    owner: int
    keeper: int
    keeper_began: str
    begun: float
    hosts: tuple[str, ...]
    alive: bool


_own: dict[Path, Note] = {}  # of this process, or of the one that it was forked from


def write(keeper: int, hosts: tuple[str, ...]) -> tuple[Path, int]:
    """Leave a note; the descriptor holds its lock for as long as this process, and nothing it
    forks, holds it.

    Raises:
        LabError: nothing can be written there.
    """
    path = private.folder() / f"{os.getpid()}-{keeper}.json"
    note = Note(path, os.getpid(), keeper, _began(keeper), time.time(), hosts, alive=True)
    fields = {
        "owner": note.owner,
        "keeper": keeper,
        "keeper_began": note.keeper_began,
        "begun": note.begun,
        "hosts": list(hosts),
    }
    _own[path] = note
    try:
        with private.opened(make=True) as at:
            # A note of an earlier lab whose processes had the same numbers.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path.name, dir_fd=at)
            fd = private.own_file(path.name, os.O_RDWR | os.O_CREAT | os.O_EXCL, at)
    except LabError:
        del _own[path]
        raise
    except OSError as error:
        del _own[path]
        raise LabError(
            f"a lab cannot be noted in {path.parent} ({error.strerror or error}): make room "
            "there, or set TMPDIR"
        ) from error
    # Lock before there is anything to read: an unlocked note is taken for one left behind.
    fcntl.lockf(fd, fcntl.LOCK_EX)
    os.write(fd, json.dumps(fields).encode())
    return path, fd


def remove(path: Path, fd: int) -> None:
    """Take a note back."""
    _unlink(path.name)
    os.close(fd)
    _own.pop(path, None)


def listed() -> list[Note]:
    """Return every lab of this user.

    Raises:
        LabError: the folder of the notes is not this user's alone.
    """
    notes = []
    with contextlib.suppress(FileNotFoundError), private.opened(make=False) as at:
        for name in sorted(each for each in os.listdir(at) if each.endswith(".json")):
            path = private.folder() / name
            # Never open our own note: closing any descriptor of it would drop the lock.
            own = _own.get(path)
            if own is not None and own.owner == os.getpid():
                notes.append(own)
            else:
                # It was removed meanwhile, is half written, or no note.
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                    notes.append(_read(path, at))
    return notes


def clean() -> list[Note]:
    """End labs whose owner is gone, and remove their notes; return those that still ran.

    Raises:
        LabError: the folder of the notes is not this user's alone.
    """
    ended = []
    for note in listed():
        if note.alive:
            continue
        if _end(note):
            ended.append(note)
        _unlink(note.path.name)
    return ended


def _read(path: Path, at: int) -> Note:
    # The lock can be had only if the owner is gone.
    fd = private.own_file(path.name, os.O_RDWR, at)
    with open(fd, "r+b") as file:
        fields = json.load(file)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alive = False
        except BlockingIOError:
            alive = True
    return Note(
        path,
        int(fields["owner"]),
        int(fields["keeper"]),
        str(fields["keeper_began"]),
        float(fields["begun"]),
        tuple(fields["hosts"]),
        alive,
    )


def _unlink(name: str) -> None:
    with contextlib.suppress(FileNotFoundError), private.opened(make=False) as at:
        os.unlink(name, dir_fd=at)


def _end(note: Note) -> bool:
    """Kill the keeper that a note names; whether there was one. Another process that has its number
    by now is left alone."""
    if note.keeper <= 1 or not note.keeper_began:
        return False
    # From here on the number cannot pass to another process unseen.
    try:
        process = os.pidfd_open(note.keeper)
    except OSError:  # it has ended
        return False
    try:
        # The number may have passed before: compare the start time and the user.
        if _began(note.keeper) != note.keeper_began or _user(note.keeper) != os.geteuid():
            return False
        signal.pidfd_send_signal(process, signal.SIGKILL)
    except ProcessLookupError:
        return False
    finally:
        os.close(process)
    return True


def _began(pid: int) -> str:
    """Return when a process began, in the kernel's ticks; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _user(pid: int) -> int | None:
    """Return the effective user of a process; None where there is none."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[2]) for line in lines if line.startswith("Uid:")), None)
