"""Choose which process builds something: a claim is a file that only one process can make, on any
file system that hosts share.

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
    """Return a name for this call that no other process or call has: `host-pid-begun-number`."""
    pid = os.getpid()
    return f"{_host()}-{pid}-{_begun(pid)}-{next(_numbers)}"


def held_elsewhere(folder: Path) -> bool:
    """Return whether a process of another host claims a folder now."""
    holder = _read(folder.with_name(folder.name + LOCK))
    return bool(holder) and not str(holder).startswith(f"{_host()}-")


@contextmanager
def claimed(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the claim of a folder inside the block; False if another process has it and we do not
    wait."""
    # Wait with growing pauses; a dead owner's claim is broken and the race begins anew.
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
        # Another process may have taken the claim for abandoned: remove it only if it is still
        # ours.
        if _read(lock) == mine:
            lock.unlink(missing_ok=True)


@contextmanager
def renewed(path: Path) -> Iterator[None]:
    """Renew the time of a path inside the block, in a thread."""
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
    """Return the path under which `path` is built: beside it, with the builder's name in it."""
    return path.with_name(f"{path.name}.{owner()}{PARTIAL}")


def left_behind(folder: Path) -> list[Path]:
    """List what dead builders left in a folder: partial paths whose owner is gone."""
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
    """Remove an abandoned claim; one that was made in the meantime is restored."""
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
    """Return whether the owner of a claim or a partial folder is dead, or can be taken for dead."""
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
    """Return the time by the clock of a folder's file system."""
    probe = folder / f"clock.{owner()}{PARTIAL}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


@functools.cache
def _host() -> str:
    """Identify this boot of this machine and the namespace of its process numbers."""
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii") + os.readlink(
            "/proc/self/ns/pid"
        )
    except OSError:
        machine = os.uname().nodename
    return hashlib.sha256(machine.encode()).hexdigest()[:12]


def _begun(pid: int) -> str:
    """Return when a process started, in the kernel's ticks since boot; empty if it does not run."""
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
