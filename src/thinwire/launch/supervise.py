"""Start the ranks of one machine, watch them, and end them together.

It replaces torch's elastic agent, whose rendezvous unpickles what it reads from a port that anybody
can reach. It sets the same variables as torchrun, so ranks need not know which started them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

LOOK_S = 0.05  # between two looks at who has ended
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PASSED_ON = {signal.SIGINT: signal.SIGINT}  # anything else as SIGTERM, at which ranks save


@dataclass(frozen=True)
class Attempt:
    """The result of ranks that ran once.

    codes: their exit codes by local rank, -n where signal n ended one.
    first: the local ranks that had failed before the others were made to end.
    signal: the first that was sent to the supervisor, or 0.
    """

    codes: tuple[int, ...]
    first: tuple[int, ...] = ()
    signal: int = 0


class Supervisor:
    """Run one command as several ranks, and pass on the signals that this process receives.

    Args:
        command: what each rank runs.
        grace_s: seconds that ranks have to end after a signal; then they are killed.
    """

    def __init__(self, command: Sequence[str], grace_s: float) -> None:
        self._command, self._grace_s = list(command), grace_s
        self._received: list[int] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record signals inside the block, to pass them on to the ranks."""
        before = {}
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP, and so do we
                before[number] = signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def attempt(self, environments: Sequence[Mapping[str, str]]) -> Attempt:
        """Run one rank in each environment until all have ended; if one fails, end the others."""
        ranks: list[subprocess.Popen[bytes]] = []
        try:
            for environment in environments:
                if self._received:
                    break
                # a session of its own: Ctrl-C on a terminal reaches this process alone, which
                # passes it on once
                ranks.append(
                    subprocess.Popen(
                        self._command,
                        env=dict(environment),
                        stdin=subprocess.DEVNULL,
                        start_new_session=True,
                    ),
                )
            first = self._watch(ranks)
        finally:
            for each in ranks:
                _send(each, signal.SIGKILL)
                each.wait()
        # Ranks that were never started, after a signal, count as ended.
        codes = [each.returncode for each in ranks]
        codes += [0] * (len(environments) - len(codes))
        return Attempt(tuple(codes), first, self._received[0] if self._received else 0)

    def _watch(self, ranks: Sequence[subprocess.Popen[bytes]]) -> tuple[int, ...]:
        """Wait until all have ended or must be killed; return the ranks that failed first."""
        passed_on, until = 0, float("inf")
        first: tuple[int, ...] = ()
        # A list, since any() would stop polling at the first that runs.
        while None in [each.poll() for each in ranks]:
            # 1. Pass signals on; from the first one on, ranks have a grace period to save.
            for number in self._received[passed_on:]:
                passed_on += 1
                until = min(until, time.monotonic() + self._grace_s)
                for each in ranks:
                    _send(each, PASSED_ON.get(signal.Signals(number), signal.SIGTERM))
            # 2. The first failure ends the others. Who has had a signal is ending, and may be
            # saving.
            failed = tuple(at for at, each in enumerate(ranks) if each.returncode)
            if failed and not first:
                first, until = failed, min(until, time.monotonic() + self._grace_s)
                for each in ranks if not passed_on else ():
                    _send(each, signal.SIGTERM)
            # 3. Out of patience: the caller kills what is left.
            if time.monotonic() > until:
                return first
            time.sleep(LOOK_S)
        return first or tuple(at for at, each in enumerate(ranks) if each.returncode)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._received.append(number)


def _send(process: subprocess.Popen[bytes], number: int) -> None:
    """Signal a rank and its children, unless it has ended."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
