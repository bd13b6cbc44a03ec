"""What `thinwire doctor` finds of the network: interfaces, TCP's settings, and whether two processes meet."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from thinwire.cli._finding import Finding, read

TIMEOUT_S = 20.0  # for two processes to start, meet and all-reduce
VALUES = 1 << 20  # float32 in the all-reduce that is timed
ROUND_TRIP_S = 0.1  # a long link's, for what a buffer can carry


def addresses() -> dict[str, list[str]]:
    """The addresses of each network interface of this machine (Linux)."""
    import fcntl

    found: dict[str, list[str]] = {name: [] for _, name in socket.if_nameindex()}
    siocgifaddr = 0x8915
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for name, own in found.items():
            try:
                told = fcntl.ioctl(probe.fileno(), siocgifaddr, name.encode()[:15].ljust(40, b"\0"))
            except OSError:  # it has no IPv4 address
                continue
            own.append(socket.inet_ntoa(told[20:24]))
    for line in (read("/proc/net/if_inet6") or "").splitlines():
        digits, *_, name = line.split()
        found.setdefault(name, []).append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits)))
    return found


def interfaces() -> Iterator[Finding]:
    there = addresses()
    outward = [name for name, own in there.items() if any(not _loops(each) for each in own)]
    words = "; ".join(f"{name} {', '.join(own)}" for name, own in there.items() if own)
    yield Finding("ok", "interfaces", words or "none with an address")
    said = os.environ.get("GLOO_SOCKET_IFNAME")
    if said:
        unknown = [name for name in said.split(",") if name not in there]
        if unknown:
            yield Finding(
                "problem", "gloo's interface", f"GLOO_SOCKET_IFNAME={said}: there is no {unknown[0]!r}", f"name one of {', '.join(there)}"
            )
        else:
            yield Finding("ok", "gloo's interface", f"GLOO_SOCKET_IFNAME={said}")
        return
    host, do = socket.gethostname(), f"for several machines: export GLOO_SOCKET_IFNAME={outward[0] if outward else 'INTERFACE'}"
    try:
        named = sorted({str(each[4][0]) for each in socket.getaddrinfo(host, None)})
    except OSError:
        yield Finding(
            "note", "host name", f"{host!r} resolves to nothing; gloo then falls back to loopback, where no other machine reaches it", do
        )
        return
    ours = {each for own in there.values() for each in own}
    words = f"{host!r} resolves to {', '.join(named)}"
    if not ours.intersection(named) and not any(map(_loops, named)):
        yield Finding(
            "note",
            "host name",
            f"{words}, no address of this machine; gloo then falls back to loopback, where no other machine reaches it",
            do,
        )
    elif any(map(_loops, named)):
        yield Finding("note", "host name", f"{words}; gloo listens there, and no other machine reaches it", do)
    else:
        yield Finding("ok", "host name", f"{words}, this machine's; gloo listens there")


def tcp() -> Iterator[Finding]:
    way, ways = (read(f"/proc/sys/net/ipv4/tcp_{key}congestion_control") for key in ("", "available_"))
    bbr = (
        "sudo sysctl -w net.ipv4.tcp_congestion_control=bbr" if "bbr" in (ways or "").split() else "sudo modprobe tcp_bbr, then choose bbr"
    )
    if way is None:
        yield Finding(
            "note", "congestion", "the kernel does not show it here", "look on the host: /proc/sys/net/ipv4/tcp_congestion_control"
        )
    elif way == "bbr":
        yield Finding("ok", "congestion", way)
    else:
        yield Finding("note", "congestion", f"{way}, which slows down at every loss", f"for long, fat or lossy links: {bbr}")
    idle = read("/proc/sys/net/ipv4/tcp_slow_start_after_idle")
    if idle == "1":
        do = "for strategies that talk seldom: sudo sysctl -w net.ipv4.tcp_slow_start_after_idle=0"
        yield Finding("note", "slow start", "again after every pause (tcp_slow_start_after_idle=1)", do)
    elif idle is not None:
        yield Finding("ok", "slow start", f"only at the beginning (tcp_slow_start_after_idle={idle})")
    for way, key in (("receive", "rmem"), ("send", "wmem")):
        grown, most = read(f"/proc/sys/net/ipv4/tcp_{key}"), read(f"/proc/sys/net/core/{key}_max")
        if grown is None:
            yield Finding("note", f"{way} buffer", f"the kernel does not show tcp_{key} here", "look on the host")
            continue
        top = int(grown.split()[-1])
        core = f", {key}_max {int(most) / 1e6:.1f} MB" if most else ""
        speed = f"{top * 8 / ROUND_TRIP_S / 1e6:,.0f} Mbit/s a connection over a round trip of {ROUND_TRIP_S * 1e3:.0f} ms"
        words = f"grows to {top / 1e6:.1f} MB{core}: at most {speed}"
        do = f"for long fat links: sudo sysctl -w net.ipv4.tcp_{key}='4096 131072 67108864' net.core.{key}_max=67108864"
        yield Finding("ok", f"{way} buffer", words) if top >= 1 << 24 else Finding("note", f"{way} buffer", words, do)


WORKER = """
import json, os, sys, time
from datetime import timedelta
import torch, torch.distributed as dist
rank, place, values = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + place, rank=rank, world_size=2, timeout=timedelta(seconds=15))
seconds = []
for turn in range(6):
    x = torch.full((values,), float(rank + 1))
    begin = time.perf_counter()
    dist.all_reduce(x)
    seconds.append(time.perf_counter() - begin)
    assert bool((x == 3).all()), "the sum is wrong"
dist.destroy_process_group()
print(json.dumps(seconds[1:]))
"""


def allreduce(timeout_s: float = TIMEOUT_S) -> Iterator[Finding]:
    """Two processes sum 4 MB over loopback; the first time is for making connections."""
    loopback = next((name for name, own in addresses().items() if "127.0.0.1" in own), "lo")
    env = {**os.environ, "GLOO_SOCKET_IFNAME": loopback, "OMP_NUM_THREADS": "1"}
    what, do = "all-reduce", "training on several ranks will not work either; read what gloo says, and look for a firewall on loopback"
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="thinwire-doctor-") as folder:
        command = [sys.executable, "-c", WORKER]
        started = [
            subprocess.Popen(
                [*command, str(rank), f"{folder}/store", str(VALUES)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            for rank in range(2)
        ]
        try:
            said = [each.communicate(timeout=max(0.0, begin + timeout_s - time.monotonic())) for each in started]
        except subprocess.TimeoutExpired:
            yield Finding("problem", what, f"two processes over {loopback} were not done within {timeout_s:g} s", do)
            return
        finally:
            for each in started:
                if each.poll() is None:
                    each.kill()
                    each.communicate()
    if failed := [err for each, (_, err) in zip(started, said, strict=True) if each.returncode]:
        last = (failed[0].strip().splitlines() or ["nothing"])[-1]
        yield Finding("problem", what, f"two processes over {loopback} failed: {last}", do)
        return
    seconds = statistics.median(json.loads(said[0][0]))
    nbytes = 4 * VALUES
    speed = f"{seconds * 1e3:.1f} ms ({nbytes / seconds / 1e9:.2f} GB/s each way)"
    words = f"two processes over {loopback} sum {nbytes / 1e6:.1f} MB in {speed}"
    yield Finding("ok", what, words)


def _loops(address: str) -> bool:
    return address.startswith("127.") or address == "::1"
