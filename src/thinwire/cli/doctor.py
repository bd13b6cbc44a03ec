"""`thinwire doctor`: what is here, what works, and what to do about the rest.

Every check looks at this machine and says what it found: `ok`, a `note` (it works, and could be better or matters only elsewhere), or a
`problem` (something that Thinwire needs does not work). Checks look; they change nothing, and one that fails to look says so.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from thinwire.say import Say
from thinwire.version import __version__

ABOUT = """\
What is installed, what works here, and what to do about the rest.

    thinwire doctor           a line a check: ok, note or problem; the exit code is 1 where there is a problem
    thinwire doctor --json
"""
TIMEOUT_S = 20.0  # for two processes to start, meet and all-reduce
VALUES = 1 << 20  # float32 in the all-reduce that is timed
# What each optional package is for, and the extra that brings it.
PACKAGES = {
    "transformers": ("train, generate", "train"),
    "tokenizers": ("train, generate", "train"),
    "safetensors": ("train, generate", "train"),
    "rich": ("train, generate, compare", "train"),
    "tensorboard": ("train", "train"),
    "matplotlib": ("train, compare", "train"),
    "datasets": ("train --data hf:NAME", "hub"),
}
ROUND_TRIP_S = 0.1  # a long link's, for what a buffer can carry
GB = 1e9


@dataclass(frozen=True)
class Finding:
    """What a check found: how it stands, with what, in words, and what to do."""

    level: Literal["ok", "note", "problem"]
    what: str
    told: str
    do: str = ""


def arguments(parser: argparse.ArgumentParser) -> None:
    """`thinwire doctor` has no flags of its own."""


def run(options: argparse.Namespace, say: Say) -> int:  # noqa: ARG001  (every command takes them)
    """Look at everything; 1 where there is a problem."""
    found = [finding for check in CHECKS for finding in looked(check)]
    counts = {level: sum(each.level == level for each in found) for level in ("ok", "note", "problem")}
    say.result({**counts, "checks": [asdict(each) for each in found]}, _text(found, counts))
    return 1 if counts["problem"] else 0


def looked(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What a check finds; where it cannot look, that is what it found."""
    try:
        yield from check()
    except Exception as error:  # whatever a strange machine makes of it: the other checks go on
        yield Finding("note", check.__name__.strip("_"), f"could not be looked at: {type(error).__name__}: {error}")


# -- software ---------------------------------------------------------------------------------------------------------


def _software() -> Iterator[Finding]:
    yield Finding("ok", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("ok", "thinwire", f"{__version__} in {Path(__file__).parents[1]}")
    try:
        import torch
        import torch.distributed as dist
    except ImportError as error:
        yield Finding("problem", "torch", f"cannot be loaded: {error}", "pip install torch")
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    able = [
        name for name, there in (("gloo", dist.is_available() and dist.is_gloo_available()), ("nccl", dist.is_nccl_available())) if there
    ]
    if "gloo" in able:
        yield Finding("ok", "torch", f"{torch.__version__}, {build}, with {', '.join(able)}")
    else:
        yield Finding("problem", "torch", f"{torch.__version__} has no gloo", "install a torch built with torch.distributed")


def _kernels() -> Iterator[Finding]:
    from thinwire.kernels import native

    here = native.available()
    try:
        used = native.chosen()
    except native.KernelError as error:
        yield Finding("problem", "kernels", str(error), f"unset {native.VARIABLE}, or choose one of {', '.join(here)}")
        return
    if here == ("torch",):
        again = "install a C++ compiler, then thinwire again: pip install --force-reinstall --no-deps thinwire"
        yield Finding("note", "kernels", "none were built, so codecs run in plain torch, many times slower", again)
    elif used != here[-1]:
        yield Finding("note", "kernels", f"{used}, as {native.VARIABLE} asks; {here[-1]} runs here", f"unset {native.VARIABLE}")
    else:
        yield Finding("ok", "kernels", f"C++ for {used}, the best of {', '.join(here[1:])}")


def _gpu_kernels() -> Iterator[Finding]:
    import torch

    from thinwire.kernels import gpu, native

    for index in range(torch.cuda.device_count()):
        lacks = gpu.lacks(torch.device("cuda", index))
        if lacks is not None:
            yield Finding(
                "problem", f"kernels, gpu {index}", f"codecs run in plain torch: {lacks}", f"do so, or set {native.VARIABLE}=torch"
            )
        elif native.chosen() == "torch":
            yield Finding("note", f"kernels, gpu {index}", f"plain torch, as {native.VARIABLE} asks", f"unset {native.VARIABLE}")
        else:
            version = importlib.import_module("triton").__version__
            told = f"Triton {version}; the first use of a setting compiles for a second or two"
            yield Finding("ok", f"kernels, gpu {index}", told)


def _packages() -> Iterator[Finding]:
    for name, (commands, extra) in PACKAGES.items():
        try:
            yield Finding("ok", name, f"{importlib.metadata.version(name)}, for {commands}")
        except importlib.metadata.PackageNotFoundError:
            yield Finding("note", name, f"not installed; needed for {commands}", f"pip install 'thinwire[{extra}]'")


# -- the machine ------------------------------------------------------------------------------------------------------


def _cores() -> Iterator[Finding]:
    there, ours = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    quota = (_read("/sys/fs/cgroup/cpu.max") or "max").split()
    allowed = int(quota[0]) / int(quota[1]) if quota[0] != "max" else float(ours)
    if min(ours, allowed) < there:
        yield Finding(
            "note", "cores", f"{there}, of which this process may use {min(ours, allowed):g}", "start no more --workers than that"
        )
    else:
        yield Finding("ok", "cores", str(there))
    said = os.environ.get("OMP_NUM_THREADS")
    if said is None:
        yield Finding("ok", "threads", "OMP_NUM_THREADS is not set; --workers shares the cores out, torchrun gives each rank one thread")
    elif said.isdecimal() and 1 <= int(said) <= there:
        yield Finding("ok", "threads", f"OMP_NUM_THREADS={said}, for each rank")
    else:
        yield Finding("note", "threads", f"OMP_NUM_THREADS={said} on {there} cores", "unset it, or set it to cores / ranks")


def _memory() -> Iterator[Finding]:
    told = dict(line.split(":", 1) for line in (_read("/proc/meminfo") or "").splitlines())
    whole, free = (int(told[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    limit = _read("/sys/fs/cgroup/memory.max") or "max"
    bound = f"; this container may use {int(limit) / GB:.1f} GB" if limit != "max" and int(limit) < whole else ""
    words = f"{free / GB:.1f} of {whole / GB:.1f} GB free{bound}"
    yield (
        Finding("ok", "memory", words)
        if free > GB
        else Finding("note", "memory", words, "a rank takes about 0.5 GB: stop something else first")
    )


def _devices() -> Iterator[Finding]:
    import torch

    count = torch.cuda.device_count()
    for index in range(count):
        kind = torch.cuda.get_device_properties(index)
        yield Finding("ok", f"gpu {index}", f"{kind.name}, {kind.total_memory / GB:.0f} GB")
    if not count:
        yield Finding("ok", "gpus", "none that torch sees; ranks train on the CPU")
    from thinwire.train.setup import computes_bf16

    device = torch.device("cuda", 0) if count else torch.device("cpu")
    a = torch.ones(8, 8, dtype=torch.bfloat16, device=device)
    if not bool((a @ a == 8).all()):
        yield Finding(
            "problem", "bf16", f"a product in bf16 on {device.type} is wrong", "train with --precision fp32, and tell torch's makers"
        )
    elif computes_bf16(device):
        yield Finding("ok", "bf16", f"{device.type} computes in it; --precision auto takes it")
    else:
        yield Finding("ok", "bf16", f"works on {device.type}, which has no matrix units for it; --precision auto takes fp32")


def _room() -> Iterator[Finding]:
    from thinwire.data.cache import cache_folder

    for what, folder in (("cache", cache_folder()), ("here", Path.cwd())):
        above = next(each for each in (folder, *folder.parents) if each.exists())
        free = shutil.disk_usage(above).free
        words = f"{free / GB:.1f} GB free in {folder}"
        if not os.access(above, os.W_OK):
            yield Finding(
                "problem", what, f"{folder} cannot be written", "set THINWIRE_CACHE" if what == "cache" else "give --out elsewhere"
            )
        elif free < 0.5 * GB:
            yield Finding("problem", what, words, "make room: checkpoints and tokens will not fit")
        else:
            yield Finding("ok" if free > 5 * GB else "note", what, words, "" if free > 5 * GB else "large models' checkpoints will not fit")
    shm = shutil.disk_usage("/dev/shm").total
    few = shm < 256e6
    yield Finding(
        "note" if few else "ok", "/dev/shm", f"{shm / GB:.2f} GB", "start the container with --shm-size=1g: NCCL needs it" if few else ""
    )


def _files() -> Iterator[Finding]:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= 1024:
        yield Finding("ok", "open files", f"at most {soft:,}")
    else:
        yield Finding(
            "note", "open files", f"at most {soft:,} (up to {hard:,})", "ulimit -n 4096: each rank holds connections to all others"
        )


# -- the network ------------------------------------------------------------------------------------------------------


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
    for line in (_read("/proc/net/if_inet6") or "").splitlines():
        digits, *_, name = line.split()
        found.setdefault(name, []).append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits)))
    return found


def _interfaces() -> Iterator[Finding]:
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


def _tcp() -> Iterator[Finding]:
    way, ways = (_read(f"/proc/sys/net/ipv4/tcp_{key}congestion_control") for key in ("", "available_"))
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
    idle = _read("/proc/sys/net/ipv4/tcp_slow_start_after_idle")
    if idle == "1":
        do = "for strategies that talk seldom: sudo sysctl -w net.ipv4.tcp_slow_start_after_idle=0"
        yield Finding("note", "slow start", "again after every pause (tcp_slow_start_after_idle=1)", do)
    elif idle is not None:
        yield Finding("ok", "slow start", f"only at the beginning (tcp_slow_start_after_idle={idle})")
    for way, key in (("receive", "rmem"), ("send", "wmem")):
        grown, most = _read(f"/proc/sys/net/ipv4/tcp_{key}"), _read(f"/proc/sys/net/core/{key}_max")
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


def _allreduce(timeout_s: float = TIMEOUT_S) -> Iterator[Finding]:
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
    speed = f"{seconds * 1e3:.1f} ms ({nbytes / seconds / GB:.2f} GB/s each way)"
    words = f"two processes over {loopback} sum {nbytes / 1e6:.1f} MB in {speed}"
    yield Finding("ok", what, words)


def _lab() -> Iterator[Finding]:
    from thinwire.errors import LabError
    from thinwire.lab import Lab, Wire, uniform

    try:
        with Lab(uniform(2, wire=Wire(rtt=0.001))) as lab:
            stats = lab.line_stats()
    except LabError as error:
        yield Finding("note", "lab", f"no emulated hosts here: {error}", "needed for thinwire lab and thinwire bench only")
        return
    means = {"netem": "delayed by netem", "queue": "delayed by a packet queue of its own: this kernel has no netem"}
    yield Finding("ok", "lab", f"emulated hosts work; packets are {means[stats.means] if stats else 'not delayed'}")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    *(_software, _kernels, _gpu_kernels, _packages, _cores, _memory, _devices, _room, _files),
    *(_interfaces, _tcp, _allreduce, _lab),
)


def _loops(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def _read(place: str) -> str | None:
    """What the kernel says there, or None where it says nothing."""
    try:
        return Path(place).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _text(found: list[Finding], counts: dict[str, int]) -> str:
    wide = min(shutil.get_terminal_size().columns, 120)
    first = max(len(each.what) for each in found)
    indent = " " * (first + 11)
    lines = []
    for each in found:
        head = f"{each.level:<7}  {each.what:<{first}}  "
        lines += textwrap.wrap(each.told, wide, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False)
        lines += textwrap.wrap(each.do, wide, initial_indent=indent + "→ ", subsequent_indent=indent + "  ", break_on_hyphens=False)
    problems = "no problems" if not counts["problem"] else f"{counts['problem']} problem{'s' * (counts['problem'] > 1)}"
    return "\n".join([*lines, "", f"{problems}, {counts['note']} note{'s' * (counts['note'] != 1)}"])
