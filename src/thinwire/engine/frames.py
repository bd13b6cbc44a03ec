"""Look up which function of torch called this one, where torch offers no hook for it."""

from __future__ import annotations

import sys


def called_within(function: str, file: str) -> bool:
    """Return whether a function is running further up this thread's stack.

    Args:
        function: its name.
        file: how the path of its source file ends.

    Example:
        >>> called_within("run", "doctest.py"), called_within("run", "nowhere.py")
        (True, False)
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == function and frame.f_code.co_filename.endswith(file):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
