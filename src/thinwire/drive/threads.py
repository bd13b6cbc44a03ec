"""Read from /proc the processor time of threads that others started, such as a transport's."""

from __future__ import annotations

from pathlib import Path

_TASKS = Path("/proc/self/task")


def thread_ids() -> set[int]:
    """Return the ids of this process's threads; empty where there is no /proc."""
    return {int(task.name) for task in _TASKS.iterdir()} if _TASKS.is_dir() else set()


def thread_s(thread: int) -> float:
    """Return the seconds that a thread has spent on a processor; 0 where it has ended or the system
    does not say.

    Example:
        >>> import threading
        >>> thread_s(threading.get_native_id()) > 0 or not thread_ids()
        True
    """
    try:
        return int((_TASKS / str(thread) / "schedstat").read_text().split()[0]) / 1e9
    except (OSError, ValueError, IndexError):
        # It has ended, or this kernel has no such statistics.
        return 0.0
