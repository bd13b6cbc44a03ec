"""Run a command on every host of a lab: its environment, its lines, its end, and the network's
schedule meanwhile."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from thinwire.errors import LabError
from thinwire.lab.counts import Count
from thinwire.lab.delay import LineStats
from thinwire.lab.spaces import Child, environment
from thinwire.net import Network
from thinwire.text.words import first_line

LOOK_S = 0.05  # between two looks at who has ended
DRAIN_S = 5.0  # for what an ended command has written
TIMED_OUT = 124  # as timeout(1) has it
OnLine = Callable[[str, str, bool], None]


class Hosts(Protocol):
    """What a run needs of a lab; `Lab` has it."""

    network: Network

    @property
    def hosts(self) -> tuple[str, ...]:
        """Return the hosts' names, by rank."""

    def popen(
        self,
        host: str,
        argv: Sequence[str],
        *,
        stdout: int | None,
        stderr: int | None,
        env: Mapping[str, str] | None,
    ) -> Child:
        """Start a command on a host."""

    def environment(self, rank: int) -> dict[str, str]:
        """Return the variables that torchrun would set for a rank."""

    def counts(self) -> dict[str, Count]:
        """Return what the kernel has counted, by host and link."""

    def line_stats(self) -> LineStats | None:
        """Return how well packets were delayed since the last call."""

    def apply(self, second: float) -> None:
        """Make the network what its schedule has for a second."""

    def failure(self) -> str | None:
        """Return what of the lab itself has failed, or `None`."""


@dataclass(frozen=True, slots=True)
class Ran:
    """The result of a command. codes: by host, -n where signal n ended it; stopped: those that the
    lab had to end, and why.

    counts: what went over each link meanwhile; line: how well packets were delayed.
    """

    codes: dict[str, int]
    stopped: dict[str, str]
    seconds: float
    counts: dict[str, Count]
    line: LineStats | None
    changes: list[tuple[float, float]] = field(default_factory=list)
    """Of each moment of the schedule: when it was due, and when it was done."""

    @property
    def worst(self) -> int:
        """The worst exit code, as a shell has it: 128 + n for signal n, 124 for a time-out; else
        hosts that the lab ended do not count."""
        if "timeout" in self.stopped.values():
            return TIMED_OUT
        own = [code for host, code in self.codes.items() if host not in self.stopped]
        return max((128 - code if code < 0 else code for code in own), default=0)


def run(
    lab: Hosts,
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    timeout: float | None,
    grace: float,
    on_line: OnLine | None,
) -> Ran:
    """Run the command and return how it ended; see `Lab.run`."""
    if not argv:
        raise LabError("no command: say what to run on every host")
    check_seconds(timeout, grace)
    # 1. Counters before, so that what ran earlier is not counted.
    before = lab.counts()
    lab.line_stats()  # from here on
    begun = time.monotonic()
    stopped: dict[str, str] = {}
    readers: list[_Reader] = []
    children: dict[str, Child] = {}
    # 2. Start every host's command, and watch them while the schedule runs.
    with _scheduled(lab, begun) as schedule:
        try:
            for rank, host in enumerate(lab.hosts):
                # Without PYTHONUNBUFFERED lines come late, or not at all.
                own = {"PYTHONUNBUFFERED": "1"} | environment() | lab.environment(rank) | dict(env)
                children[host] = _start(lab, host, argv, own, on_line or _print, readers)
            _watch(lab, children, stopped, begun, timeout, grace, schedule)
        # In the end nothing runs, whatever happened, and the last lines are read for a while.
        finally:
            _stop(children, stopped, "interrupted", grace)
            until = time.monotonic() + DRAIN_S
            for reader in readers:
                reader.join(max(0.0, until - time.monotonic()))
    for reader in readers:
        if reader.error is not None:
            raise LabError(
                f"{reader.host}'s lines could not be passed on ({first_line(reader.error)}); the "
                "command ran on"
            ) from reader.error
    # 3. What was sent, and how each ended.
    seconds = time.monotonic() - begun
    counts = {name: count.since(before[name]) for name, count in lab.counts().items()}
    return Ran(
        {host: _code(child) for host, child in children.items()},
        stopped,
        seconds,
        counts,
        lab.line_stats(),
        schedule.done,
    )


def check_seconds(timeout: float | None, grace: float) -> None:
    """Return whether they can be waited for.

    Raises:
        LabError: they cannot.
    """
    for name, value in (("timeout", timeout), ("grace", grace)):
        if value is not None and not 0 <= value <= threading.TIMEOUT_MAX:
            raise LabError(
                f"{name}={value:g} s cannot be waited for: say a number of seconds from 0 on"
            )


def _start(
    lab: Hosts,
    host: str,
    argv: Sequence[str],
    env: Mapping[str, str],
    on_line: OnLine,
    readers: list[_Reader],
) -> Child:
    # The command's ends are closed here once it runs: else a reader would never see the end.
    ends = [os.pipe(), os.pipe()]
    try:
        child = lab.popen(host, argv, stdout=ends[0][1], stderr=ends[1][1], env=env)
    except BaseException:
        for here, _ in ends:
            os.close(here)
        raise
    finally:
        for _, there in ends:
            os.close(there)
    for (here, _), complaint in zip(ends, (False, True), strict=True):
        readers.append(_Reader(here, host, complaint, on_line))
        readers[-1].start()
    return child


class _Reader(threading.Thread):
    """Pass on the lines of one stream.

    It reads on when `on_line` fails: else the command would stop at a full pipe, or be killed.
    """

    def __init__(self, fd: int, host: str, complaint: bool, on_line: OnLine) -> None:
        super().__init__(name=f"lab lines of {host}", daemon=True)
        self.host = host
        self.error: Exception | None = None
        self._fd, self._complaint, self._on_line = fd, complaint, on_line

    def run(self) -> None:
        with open(self._fd, encoding="utf-8", errors="replace") as pipe:
            for line in pipe:  # universal newlines: a progress bar's \r ends a line, too
                if self.error is None:
                    try:
                        self._on_line(self.host, line.rstrip("\n"), self._complaint)
                    except Exception as error:
                        self.error = error


def _print(host: str, line: str, complaint: bool) -> None:
    print_line(sys.stderr if complaint else sys.stdout, f"[{host}] {line}")


def print_line(out: TextIO, line: str) -> None:
    """Print a line: what the stream's encoding lacks as `\\u2192`, and nothing once nobody reads
    it, as after `| head`."""
    encoding = out.encoding or "utf-8"
    try:
        out.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        out.flush()
    except BrokenPipeError:
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), out.fileno())


def _watch(
    lab: Hosts,
    children: dict[str, Child],
    stopped: dict[str, str],
    begun: float,
    timeout: float | None,
    grace: float,
    schedule: _Schedule,
) -> None:
    """Wait until all have ended, or must."""
    failed_at: float | None = None
    while True:
        # Wait for any of them, a moment at a time; then the reasons to stop, the lab's own first.
        going = [child for child in children.values() if child.code is None]
        if not going:
            return
        going[0].wait(LOOK_S)
        now = time.monotonic()
        if (failure := schedule.failure or lab.failure()) is not None:
            _stop(children, stopped, "the lab failed", grace=1.0)
            raise LabError(failure)
        if timeout is not None and now - begun > timeout:
            _stop(children, stopped, "timeout", grace)
            return
        # After the first failure the others have `grace` to end by themselves.
        if failed_at is None and any(child.code for child in children.values()):
            failed_at = now
        if failed_at is not None and now - failed_at > grace:
            _stop(children, stopped, "another host failed", grace)
            return


def _stop(children: dict[str, Child], stopped: dict[str, str], why: str, grace: float) -> None:
    """End what goes on, all at once."""
    going = {host: child for host, child in children.items() if child.code is None}
    stopped |= dict.fromkeys(going, why)
    enders = [threading.Thread(target=child.stop, args=(grace,)) for child in going.values()]
    for ender in enders:
        ender.start()
    for ender in enders:
        ender.join()


def _code(child: Child) -> int:
    return -9 if child.code is None else child.code


@dataclass
class _Schedule:
    done: list[tuple[float, float]] = field(default_factory=list)
    failure: str | None = None


@contextmanager
def _scheduled(lab: Hosts, begun: float) -> Iterator[_Schedule]:
    """Apply the network's changes at their times, and restore the first state in the end."""
    applied, over = _Schedule(), threading.Event()

    # Wait for each moment, or for the end of the run, whichever comes first.
    def go() -> None:
        for moment in lab.network.moments():
            if over.wait(max(0.0, begun + moment - time.monotonic())):
                return
            try:
                lab.apply(moment)
            except LabError as error:
                applied.failure = f"the change at {moment:g} s could not be made: {error}"
                return
            applied.done.append((moment, time.monotonic() - begun))

    thread = threading.Thread(target=go, name="lab schedule", daemon=True)
    thread.start()
    try:
        yield applied
    finally:
        over.set()
        thread.join()
        # A lab that has failed cannot be put back.
        if applied.failure is None and lab.failure() is None:
            lab.apply(0.0)
