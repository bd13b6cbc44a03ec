"""Check what is installed on this machine, its processors, memory, disks and the lab.

Every check yields findings: `ok`, a `note` (it works, and could be better or matters only
elsewhere), or a `problem` (something that Thinwire needs does not work). Checks change nothing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from thinwire import env
from thinwire.planner.machine import network
from thinwire.planner.machine.finding import Finding, read
from thinwire.planner.machine.frameworks import frameworks
from thinwire.version import __version__

# What each optional package is for, and the extra that brings it.
PACKAGES = {
    "transformers": ("train, generate", "train"),
    "tokenizers": ("train, generate", "train"),
    "safetensors": ("train, generate", "train"),
    "rich": ("train, generate, compare", "train"),
    "tensorboard": ("train", "train"),
    "matplotlib": ("train, compare, bench, report", "train"),
    "datasets": ("train --data hf:NAME", "hub"),
}
GB = 1e9


def looked(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield what a check finds; where it cannot look, a note that says so."""
    try:
        yield from check()
    except Exception as error:  # whatever a strange machine makes of it: the other checks go on
        yield Finding(
            "note",
            check.__name__.strip("_"),
            f"could not be looked at: {type(error).__name__}: {error}",
        )


# -- software


def software() -> Iterator[Finding]:
    yield Finding(
        "ok", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    )
    yield Finding("ok", "thinwire", f"{__version__} in {Path(__file__).parents[2]}")
    try:
        import torch
        import torch.distributed as dist
    except ImportError as error:
        yield Finding("problem", "torch", f"cannot be loaded: {error}", "pip install torch")
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    able = [
        name
        for name, there in (
            ("gloo", dist.is_available() and dist.is_gloo_available()),
            ("nccl", dist.is_nccl_available()),
        )
        if there
    ]
    if "gloo" in able:
        yield Finding("ok", "torch", f"{torch.__version__}, {build}, with {', '.join(able)}")
    else:
        yield Finding(
            "problem",
            "torch",
            f"{torch.__version__} has no gloo",
            "install a torch built with torch.distributed",
        )


def kernels() -> Iterator[Finding]:
    from thinwire.kernels import native

    here = native.available()
    try:
        used = native.chosen()
    except native.KernelError as error:
        yield Finding(
            "problem",
            "kernels",
            str(error),
            f"unset {native.VARIABLE}, or choose one of {', '.join(here)}",
        )
        return
    if here == ("torch",):
        reinstall = (
            "install a C++ compiler, then thinwire again: pip install --force-reinstall --no-deps "
            "thinwire"
        )
        yield Finding(
            "note",
            "kernels",
            "none were built, so codecs run in plain torch, many times slower",
            reinstall,
        )
    elif used != here[-1]:
        yield Finding(
            "note",
            "kernels",
            f"{used}, as {native.VARIABLE} asks; {here[-1]} runs here",
            f"unset {native.VARIABLE}",
        )
    else:
        yield Finding("ok", "kernels", f"C++ for {used}, the best of {', '.join(here[1:])}")


def gpu_kernels() -> Iterator[Finding]:
    import torch

    from thinwire.kernels import gpu, native

    for index in range(torch.cuda.device_count()):
        lacks = gpu.lacks(torch.device("cuda", index))
        if lacks is not None:
            yield Finding(
                "problem",
                f"kernels, gpu {index}",
                f"codecs run in plain torch: {lacks}",
                f"do so, or set {native.VARIABLE}=torch",
            )
        elif native.chosen() == "torch":
            yield Finding(
                "note",
                f"kernels, gpu {index}",
                f"plain torch, as {native.VARIABLE} asks",
                f"unset {native.VARIABLE}",
            )
        else:
            version = importlib.import_module("triton").__version__
            text = f"Triton {version}; the first use of a setting compiles for a second or two"
            yield Finding("ok", f"kernels, gpu {index}", text)


def packages() -> Iterator[Finding]:
    for name, (commands, extra) in PACKAGES.items():
        try:
            yield Finding("ok", name, f"{importlib.metadata.version(name)}, for {commands}")
        except importlib.metadata.PackageNotFoundError:
            yield Finding(
                "note",
                name,
                f"not installed; needed for {commands}",
                f"pip install 'thinwire[{extra}]'",
            )


# -- the machine


def cores() -> Iterator[Finding]:
    # A container's quota may be less than the processors that the scheduler allows.
    there, ours = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    quota = (read("/sys/fs/cgroup/cpu.max") or "max").split()
    allowed = int(quota[0]) / int(quota[1]) if quota[0] != "max" else float(ours)
    if min(ours, allowed) < there:
        yield Finding(
            "note",
            "cores",
            f"{there}, of which this process may use {min(ours, allowed):g}",
            "start no more --workers than that",
        )
    else:
        yield Finding("ok", "cores", str(there))
    threads = env.text("OMP_NUM_THREADS")
    if not threads:
        yield Finding(
            "ok",
            "threads",
            (
                "OMP_NUM_THREADS is not set; --workers shares the cores out, torchrun gives each "
                "rank one thread"
            ),
        )
    elif threads.isdecimal() and 1 <= int(threads) <= there:
        yield Finding("ok", "threads", f"OMP_NUM_THREADS={threads}, for each rank")
    else:
        yield Finding(
            "note",
            "threads",
            f"OMP_NUM_THREADS={threads} on {there} cores",
            "unset it, or set it to cores / ranks",
        )


def memory() -> Iterator[Finding]:
    sizes = dict(line.split(":", 1) for line in (read("/proc/meminfo") or "").splitlines())
    whole, free = (int(sizes[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    # A container's limit may be below the machine's memory.
    limit = read("/sys/fs/cgroup/memory.max") or "max"
    bound = (
        f"; this container may use {int(limit) / GB:.1f} GB"
        if limit != "max" and int(limit) < whole
        else ""
    )
    words = f"{free / GB:.1f} of {whole / GB:.1f} GB free{bound}"
    yield (
        Finding("ok", "memory", words)
        if free > GB
        else Finding(
            "note", "memory", words, "a rank takes about 0.5 GB: stop something else first"
        )
    )


def devices() -> Iterator[Finding]:
    import torch

    count = torch.cuda.device_count()
    for index in range(count):
        kind = torch.cuda.get_device_properties(index)
        yield Finding("ok", f"gpu {index}", f"{kind.name}, {kind.total_memory / GB:.0f} GB")
    if not count:
        yield Finding("ok", "gpus", "none that torch sees; ranks train on the CPU")
    # A product that is known shows whether bf16 works at all, before whether it is fast.
    from thinwire.planner.machine.processor import computes_bf16

    device = torch.device("cuda", 0) if count else torch.device("cpu")
    a = torch.ones(8, 8, dtype=torch.bfloat16, device=device)
    if not bool((a @ a == 8).all()):
        yield Finding(
            "problem",
            "bf16",
            f"a product in bf16 on {device.type} is wrong",
            "train with --precision fp32, and tell torch's makers",
        )
    elif computes_bf16(device):
        yield Finding("ok", "bf16", f"{device.type} computes in it; --precision auto takes it")
    else:
        yield Finding(
            "ok",
            "bf16",
            (
                f"works on {device.type}, which has no matrix units for it; --precision auto "
                "takes fp32"
            ),
        )


def room() -> Iterator[Finding]:
    from thinwire.data.cache import cache_folder

    for what, folder in (("cache", cache_folder()), ("here", Path.cwd())):
        above = next(each for each in (folder, *folder.parents) if each.exists())
        free = shutil.disk_usage(above).free
        words = f"{free / GB:.1f} GB free in {folder}"
        if not os.access(above, os.W_OK):
            yield Finding(
                "problem",
                what,
                f"{folder} cannot be written",
                "set THINWIRE_CACHE" if what == "cache" else "give --out elsewhere",
            )
        elif free < 0.5 * GB:
            yield Finding("problem", what, words, "make room: checkpoints and tokens will not fit")
        else:
            yield Finding(
                "ok" if free > 5 * GB else "note",
                what,
                words,
                "" if free > 5 * GB else "large models' checkpoints will not fit",
            )
    shm = shutil.disk_usage("/dev/shm").total
    few = shm < 256e6
    yield Finding(
        "note" if few else "ok",
        "/dev/shm",
        f"{shm / GB:.2f} GB",
        "start the container with --shm-size=1g: NCCL needs it" if few else "",
    )


def files() -> Iterator[Finding]:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= 1024:
        yield Finding("ok", "open files", f"at most {soft:,}")
    else:
        yield Finding(
            "note",
            "open files",
            f"at most {soft:,} (up to {hard:,})",
            "ulimit -n 4096: each rank holds connections to all others",
        )


def lab() -> Iterator[Finding]:
    from thinwire.errors import LabError
    from thinwire.lab import Lab
    from thinwire.net import Wire, uniform

    # The smallest lab that delays anything: two hosts and a short wire.
    try:
        with Lab(uniform(2, wire=Wire(latency_s=0.0005))) as lab:
            stats = lab.line_stats()
    except LabError as error:
        if "was not done within" in str(error) and (why := network.busy()):
            yield Finding(
                "note",
                "lab",
                f"emulated hosts were not up in time; but {why}",
                "run thinwire doctor again when it is idle",
            )
        else:
            yield Finding(
                "note",
                "lab",
                f"no emulated hosts here: {error}",
                "needed for thinwire lab and thinwire bench only",
            )
        return
    means = {
        "netem": "delayed by netem",
        "queue": "delayed by a packet queue of its own: this kernel has no netem",
    }
    yield Finding(
        "ok",
        "lab",
        f"emulated hosts work; packets are {means[stats.means] if stats else 'not delayed'}",
    )


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    *(software, frameworks, kernels, gpu_kernels, packages, cores, memory, devices, room, files),
    *(network.interfaces, network.tcp, network.allreduce, lab),
)
