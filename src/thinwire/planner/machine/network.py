"""Check this machine's network: interfaces, TCP's settings, and whether two processes meet."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from thinwire import env
from thinwire.drive.interfaces import addresses, is_loopback
from thinwire.planner.machine.finding import Finding, read

START_S = 60.0  # for two processes to load torch
MEET_S = 20.0  # to meet and all-reduce
SPIN_S, ENOUGH = 0.2, 0.8  # of a core, in a loop of so many seconds
VALUES = 1 << 20  # float32 in the all-reduce that is timed
ROUND_TRIP_S = 0.1  # a long link's, for what a buffer can carry


def interfaces() -> Iterator[Finding]:
    there = addresses()
    outward = [name for name, own in there.items() if any(not is_loopback(each) for each in own)]
    words = "; ".join(f"{name} {', '.join(own)}" for name, own in there.items() if own)
    yield Finding("ok", "interfaces", words or "none with an address")
    # 1. gloo's interface, if the user names one.
    chosen = env.text("GLOO_SOCKET_IFNAME")
    if chosen:
        unknown = [name for name in chosen.split(",") if name not in there]
        if unknown:
            yield Finding(
                "problem",
                "gloo's interface",
                f"GLOO_SOCKET_IFNAME={chosen}: there is no {unknown[0]!r}",
                f"name one of {', '.join(there)}",
            )
        else:
            yield Finding("ok", "gloo's interface", f"GLOO_SOCKET_IFNAME={chosen}")
        return
    # 2. Else gloo takes the address that the host's name resolves to: is it this machine's?
    host, do = (
        socket.gethostname(),
        f"for several machines: export GLOO_SOCKET_IFNAME={outward[0] if outward else 'INTERFACE'}",
    )
    try:
        named = sorted({str(each[4][0]) for each in socket.getaddrinfo(host, None)})
    except OSError:
        yield Finding(
            "note",
            "host name",
            (
                f"{host!r} resolves to nothing; gloo then falls back to loopback, where no other "
                "machine reaches it"
            ),
            do,
        )
        return
    ours = {each for own in there.values() for each in own}
    words = f"{host!r} resolves to {', '.join(named)}"
    if not ours.intersection(named) and not any(map(is_loopback, named)):
        yield Finding(
            "note",
            "host name",
            (
                f"{words}, no address of this machine; gloo then falls back to loopback, where no "
                "other machine reaches it"
            ),
            do,
        )
    elif any(map(is_loopback, named)):
        yield Finding(
            "note", "host name", f"{words}; gloo listens there, and no other machine reaches it", do
        )
    else:
        yield Finding("ok", "host name", f"{words}, this machine's; gloo listens there")


def tcp() -> Iterator[Finding]:
    # 1. Congestion control. 2. Slow start after a pause. 3. The largest buffers.
    way, ways = (
        read(f"/proc/sys/net/ipv4/tcp_{key}congestion_control") for key in ("", "available_")
    )
    bbr = (
        "sudo sysctl -w net.ipv4.tcp_congestion_control=bbr"
        if "bbr" in (ways or "").split()
        else "sudo modprobe tcp_bbr, then choose bbr"
    )
    if way is None:
        yield Finding(
            "note",
            "congestion",
            "the kernel does not show it here",
            "look on the host: /proc/sys/net/ipv4/tcp_congestion_control",
        )
    elif way == "bbr":
        yield Finding("ok", "congestion", way)
    else:
        yield Finding(
            "note",
            "congestion",
            f"{way}, which slows down at every loss",
            f"for long, fat or lossy links: {bbr}",
        )
    idle = read("/proc/sys/net/ipv4/tcp_slow_start_after_idle")
    if idle == "1":
        do = "for strategies that talk seldom: sudo sysctl -w net.ipv4.tcp_slow_start_after_idle=0"
        yield Finding(
            "note", "slow start", "again after every pause (tcp_slow_start_after_idle=1)", do
        )
    elif idle is not None:
        yield Finding(
            "ok", "slow start", f"only at the beginning (tcp_slow_start_after_idle={idle})"
        )
    for way, key in (("receive", "rmem"), ("send", "wmem")):
        grown, most = read(f"/proc/sys/net/ipv4/tcp_{key}"), read(f"/proc/sys/net/core/{key}_max")
        if grown is None:
            yield Finding(
                "note",
                f"{way} buffer",
                f"the kernel does not show tcp_{key} here",
                "look on the host",
            )
            continue
        top = int(grown.split()[-1])
        core = f", {key}_max {int(most) / 1e6:.1f} MB" if most else ""
        speed = (
            f"{top * 8 / ROUND_TRIP_S / 1e6:,.0f} Mbit/s a connection over a round trip of "
            f"{ROUND_TRIP_S * 1e3:.0f} ms"
        )
        words = f"grows to {top / 1e6:.1f} MB{core}: at most {speed}"
        do = (
            f"for long fat links: sudo sysctl -w net.ipv4.tcp_{key}='4096 131072 67108864' "
            f"net.core.{key}_max=67108864"
        )
        yield (
            Finding("ok", f"{way} buffer", words)
            if top >= 1 << 24
            else Finding("note", f"{way} buffer", words, do)
        )


WORKER = """
import json, os, sys, time
from datetime import timedelta
import torch, torch.distributed as dist
rank, folder, values, limit = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
torch.set_num_threads(1)
open(f"{folder}/ready{rank}", "w").close()
while not os.path.exists(f"{folder}/go"):
    time.sleep(0.01)
store, limit = f"file://{folder}/store", timedelta(seconds=limit)
dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=limit)
seconds = []
for turn in range(11):
    x = torch.full((values,), float(rank + 1))
    begin = time.perf_counter()
    dist.all_reduce(x)
    seconds.append(time.perf_counter() - begin)
    assert bool((x == 3).all()), "the sum is wrong"
dist.destroy_process_group()
print(json.dumps(seconds[1:]))
"""


def allreduce(start_s: float = START_S, meet_s: float = MEET_S) -> Iterator[Finding]:
    """Sum 4 MB over loopback in two processes, ten times; the best of them counts, as others may be
    at work on this machine.

    Processes that are not done in time get twice as long once more. If they are late again, that is
    a problem on a machine with nothing else to do. On a busy one nothing is known, and a note says
    so.
    """
    loopback = next((name for name, own in addresses().items() if "127.0.0.1" in own), "lo")
    do = (
        "training on several ranks will not work either; read what gloo says, and look for a "
        "firewall on loopback"
    )
    what, pair = "all-reduce", f"two processes over {loopback}"
    # Late once may be chance: twice the time, once more.
    seconds, late, failed = _summed(loopback, start_s, meet_s)
    if late:
        seconds, late, failed = _summed(loopback, 2 * start_s, 2 * meet_s)
    if late and (why := busy()):
        yield Finding(
            "note",
            what,
            f"{pair} {late}; but {why}, so nothing is known of the network",
            "run thinwire doctor again when it is idle",
        )
    elif late:
        yield Finding("problem", what, f"{pair} {late}, twice", do)
    elif failed:
        yield Finding("problem", what, f"{pair} failed: {failed}", do)
    else:
        best, nbytes = min(seconds), 4 * VALUES
        speed = f"{best * 1e3:.1f} ms ({nbytes / best / 1e9:.2f} GB/s each way)"
        yield Finding(
            "ok", what, f"{pair} sum {nbytes / 1e6:.1f} MB in {speed}, the best of {len(seconds)}"
        )
        if why := busy():
            yield Finding(
                "note",
                "busy",
                f"{why}: what is timed here takes longer than it would",
                "run thinwire doctor again when it is idle",
            )


def _summed(loopback: str, start_s: float, meet_s: float) -> tuple[list[float], str, str]:
    """Return the seconds of each all-reduce; or what was late; or what failed. Loading torch is
    waited for apart."""
    # 1. Start both, and wait until both have loaded torch: that is not the network's time.
    variables = {**env.copy(), "GLOO_SOCKET_IFNAME": loopback, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="thinwire-doctor-") as folder:
        command = [sys.executable, "-c", WORKER]
        started = [
            subprocess.Popen(
                [*command, str(rank), folder, str(VALUES), str(meet_s)],
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            ready = [f"{folder}/ready{rank}" for rank in range(2)]
            if not _until(
                lambda: (
                    all(map(os.path.exists, ready))
                    or any(each.poll() is not None for each in started)
                ),
                start_s,
            ):
                return [], f"had not started after {start_s:g} s", ""
            # 2. Let them go, and wait for both sums.
            with open(f"{folder}/go", "w"):
                pass
            if not _until(
                lambda: (
                    all(each.poll() == 0 for each in started)
                    or any(each.poll() for each in started)
                ),
                meet_s,
            ):
                return [], f"were not done after {meet_s:g} s", ""
            # 3. One failed: the other may wait for it.
            if failed := next((each for each in started if each.returncode), None):
                lines = failed.communicate()[1].strip().splitlines()
                last = lines[-1] if lines else "nothing"
                return (
                    ([], f"were not done after {meet_s:g} s", "")
                    if "timed out" in last.lower()
                    else ([], "", last)
                )
            seconds = [json.loads(each.communicate()[0]) for each in started]
        finally:
            for each in started:
                each.kill()
                # Also closes the pipes of one that has ended.
                each.communicate()
    return [max(pair) for pair in zip(*seconds, strict=True)], "", ""


def _until(true: Callable[[], bool], seconds: float) -> bool:
    """Wait until something is true; whether it is within so many seconds."""
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def busy() -> str:
    """Return what else this machine is doing, where that is much; empty where it has time.

    Both are asked: how much of a core a loop gets now, and how many processes were ready to run in
    the last minute.
    """
    wall, own = time.perf_counter(), time.thread_time()
    while time.perf_counter() - wall < SPIN_S:
        pass
    gets = (time.thread_time() - own) / (time.perf_counter() - wall)
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if gets < ENOUGH:
        return f"this machine is busy: a loop gets {gets:.0%} of a core"
    if load > cores:
        return (
            f"this machine is busy: {load:.1f} processes were ready for its {cores} cores in the "
            "last minute"
        )
    return ""
