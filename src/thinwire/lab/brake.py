"""Slow hosts' CPUs down: stop what runs on them for a part of every period. Run by path, `python -I
brake.py`, by `lab.py`.

Standard input: {"hosts": [{"pid", "slow"}]}; its end means the end. A host's processes are those
with its network namespace; at a slow of 2 they run for 2.5 of every 5 ms, whatever cores there are.
Standard library only.
"""

import contextlib
import heapq
import json
import os
import select
import signal
import sys
import time
from typing import Any

PERIOD_S = 0.005
LOOK_S = 0.1  # between two looks at which processes there are


class Host:
    """The processes of one host."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.keeper, self.slow = settings["pid"], settings["slow"]
        self.space = os.readlink(f"/proc/{self.keeper}/ns/net")
        self.running = True
        self.pids: set[int] = set()

    def signal(self, number: int) -> None:
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def look(hosts: list[Host]) -> None:
    """Return which processes there are."""
    spaces: dict[str, set[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):
                spaces.setdefault(os.readlink(f"/proc/{name}/ns/net"), set()).add(int(name))
    for host in hosts:
        host.pids = spaces.get(host.space, set()) - {host.keeper}


def run(hosts: list[Host]) -> None:
    """Stop and go until standard input ends."""
    # Hosts start 1 ms apart, so that they do not all stop at once. The heap has each host's next
    # turn.
    now = time.monotonic()
    turns = [(now + i * 1e-3, i) for i in range(len(hosts))]
    looked = 0.0
    while True:
        at, i = turns[0]
        # The end of standard input is the end of the lab.
        if select.select([0], [], [], max(0.0, at - time.monotonic()))[0]:
            return
        # Processes come and go: look for a host's now and then, not at every turn.
        if (now := time.monotonic()) - looked > LOOK_S:
            look(hosts)
            looked = now
        host = hosts[i]
        host.running = not host.running
        host.signal(signal.SIGCONT if host.running else signal.SIGSTOP)
        # A turn that comes late does not shift the ones after it, unless it is a period late.
        part = 1 / host.slow if host.running else 1 - 1 / host.slow
        heapq.heapreplace(turns, (max(at, now - PERIOD_S) + part * PERIOD_S, i))


if __name__ == "__main__":
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(5))
    line = sys.stdin.readline()
    if line:
        slowed = [Host(each) for each in json.loads(line)["hosts"]]
        print("ready", flush=True)
        try:
            run(slowed)
        finally:
            for each in slowed:
                each.signal(signal.SIGCONT)
