"""Signals for a suite that may itself be started with some of them ignored."""

from __future__ import annotations

import signal


def take_interrupts() -> None:
    """Give SIGINT and SIGHUP their usual effect where this process has inherited them ignored.

    A shell starts what runs in the background with SIGINT ignored, and nohup ignores SIGHUP. Every
    process that a test starts would inherit that, and the tests which interrupt one would wait for
    ever.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
