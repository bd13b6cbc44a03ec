"""Who builds: a claim is a file that only one process can make, on any file system that hosts
share.

It says whose it is and its time is renewed while its owner lives. It saves work and decides
nothing: what is built is moved to its place in one step, and whoever comes second finds it there.
So a claim that is taken from a living owner costs a second building, no more.

A claim is abandoned when its owner is known to be dead (on this host, in this namespace of
processes: that process is gone, or its number is another's now), or else when nobody has renewed it
for `STALE_S`, by the clock of the file system, since hosts' clocks differ.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK, PARTIAL = ".lock", ".partial"
STALE_S = 120.0
RENEWED_S = 5.0
LOOK_S = 0.05  # between two looks at another's claim, at first; then longer
LONGEST_LOOK_S = 1.0
_numbers = itertools.count()


def owner() -> str:
    """This process, told from every other of any host, and each call from the last:
    `host-pid-begun-number`."""
    pid = os.getpid()
    return f"{_host()}-{pid}-{_begun(pid)}-{next(_numbers)}"


def held_elsewhere(folder: Path) -> bool:
    """Whether a process of another host claims a folder now."""
    holder = _read(folder.with_name(folder.name + LOCK))
    return bool(holder) and not str(holder).startswith(f"{_host()}-")


@contextmanager
def claimed(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """The claim of a folder, held meanwhile; False if it is another's and we do not wait."""
    lock, mine = folder.with_name(folder.name + LOCK), owner()
    pause = LOOK_S
    while not _made(lock, mine):
        if _abandoned(lock):
            _break(lock, mine)
            continue
        if not wait:
            yield False
            return
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_LOOK_S)
    try:
        with renewed(lock):
            yield True
    finally:
        if _read(lock) == mine:
            lock.unlink(missing_ok=True)


@contextmanager
def renewed(path: Path) -> Iterator[None]:
    """The time of a path, renewed by a thread meanwhile."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(RENEWED_S):
            with contextlib.suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=renew, name="thinwire-claim", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def partial(path: Path) -> Path:
    """Where the like of `path` is built: beside it, under a name that says by whom."""
    return path.with_name(f"{path.name}.{owner()}{PARTIAL}")


def left_behind(folder: Path) -> list[Path]:
    """What builders left in a folder that have died: all that goes by the name of a partial one
    whose owner is gone."""
    return [
        path
        for path in folder.glob("*" + PARTIAL)
        if _gone(path, path.name.removesuffix(PARTIAL).rpartition(".")[2])
    ]


def _made(lock: Path, mine: str) -> bool:
    try:
        handle = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        os.write(handle, mine.encode())
    finally:
        os.close(handle)
    return True


def _read(lock: Path) -> str | None:
    try:
        return lock.read_text(encoding="utf-8")
    except OSError:
        return None


def _abandoned(lock: Path) -> bool:
    whose = _read(lock)
    return whose is not None and _gone(lock, whose)


def _break(lock: Path, mine: str) -> None:
    """Take an abandoned claim away; one that was made in the meantime is put back."""
    whose, aside = _read(lock), lock.with_name(f"{lock.name}.{mine}{PARTIAL}")
    try:
        os.rename(lock, aside)
    except FileNotFoundError:
        return  # another was faster
    if _read(aside) != whose:
        with contextlib.suppress(
            OSError
        ):  # where there are no hard links, or already a third one: two may build then
            os.link(aside, lock)
    aside.unlink(missing_ok=True)


def _gone(path: Path, whose: str) -> bool:
    """Whether the owner of a claim or a partial folder is dead, or may be taken for it."""
    host, _, rest = whose.partition("-")
    pid, _, rest = rest.partition("-")
    begun = rest.partition("-")[0]
    if host == _host() and pid.isdecimal() and begun:
        return _begun(int(pid)) != begun
    try:
        return _clock(path.parent) - path.stat().st_mtime > STALE_S
    except OSError:
        return False


def _clock(folder: Path) -> float:
    """What time it is for the file system of a folder."""
    probe = folder / f"clock.{owner()}{PARTIAL}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


@functools.cache
def _host() -> str:
    """This boot of this machine, and the namespace that its process numbers are of."""
    try:
        place = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii") + os.readlink(
            "/proc/self/ns/pid"
        )
    except OSError:
        place = os.uname().nodename
    return hashlib.sha256(place.encode()).hexdigest()[:12]


def _begun(pid: int) -> str:
    """When a process began, in the kernel's ticks since boot; empty if there is none, or only its
    exit code is left."""
    try:
        state, *rest = (
            Path(f"/proc/{pid}/stat")
            .read_text(encoding="utf-8", errors="replace")
            .rpartition(")")[2]
            .split()
        )
    except (OSError, ValueError):
        return ""
    return "" if state in "ZX" else rest[18]
