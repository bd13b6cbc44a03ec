"""Refuse more workers than memory holds, before they exhaust the machine.

Ordinary runs are not delayed: a rank is measured only if `ROUGH` bytes for each rank do not fit
twice into the free memory. Then a separate process takes the first steps of a rank and prints the
memory that they took.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from thinwire import env
from thinwire.errors import ConfigError, ThinwireError
from thinwire.text.output import CommandOutput
from thinwire.train.config import FIELDS, TrainConfig, add_flags, config_from, flags_of

ROUGH = (
    1 << 30
)  # bytes of a rank that is not measured; most of a small model's 0.5 GB are torch and transformers
COPIES = 4  # of a saved model's weights: they, their gradients and AdamW's two averages
WITHIN_S = 600.0  # for a first step; text may have to be tokenised
ROWS = 8  # of held-out text: a run of few steps ends with a validation
GB = 1e9


@dataclass(frozen=True)
class Usage:
    """The memory of one rank in bytes: its own peak, and the pages of files that all ranks
    share."""

    own: int
    shared: int

    def of(self, ranks: int) -> int:
        """Return the bytes of several ranks.

        Example:
            >>> Usage(own=10, shared=3).of(4)
            43
        """
        return self.shared + ranks * self.own


def must_fit(config: TrainConfig, threads: int) -> None:
    """Refuse `--workers` if this machine's memory is too small for them. Shards are not measured,
    as no rank can take a step alone.

    Raises:
        ConfigError: they do not fit, or a rank cannot be measured; the message has the numbers and
            what to do.
    """
    # A rough bound passes ordinary runs; only a doubtful one pays for a measurement.
    free, bound = free_bytes()
    rough = ROUGH + COPIES * _saved_bytes(config.model)
    if config.parallel == "fsdp":
        return
    if config.force or config.workers == 1 or 2 * config.workers * rough <= free:
        return
    usage = measured(config, threads)
    if (needed := usage.of(config.workers)) > free:
        fit = max(0, free - usage.shared) // usage.own
        do = (
            f"take --workers {fit} or fewer, or a smaller model or --batch"
            if fit
            else "take a smaller model or --batch"
        )
        raise ConfigError(
            f"--workers {config.workers} need {needed / GB:.1f} GB of memory, and {free / GB:.1f} "
            f"GB are free ({bound}): a rank, measured "
            f"over its first steps, takes {usage.own / GB:.2f} GB, and all share "
            f"{usage.shared / GB:.2f} GB. "
            f"{do[0].upper()}{do[1:]}; --force starts them nevertheless"
        )


def measured(config: TrainConfig, threads: int) -> Usage:
    """Measure the memory of one rank in a separate process that takes the first steps of the run.

    Raises:
        ConfigError: it failed; the message has the reason.
    """
    # One worker, without what comes after the steps, and few validation windows.
    alone = dataclasses.replace(
        config,
        workers=1,
        restarts=0,
        nodes=1,
        node_rank=0,
        sample=0,
        windows=min(config.windows, ROWS),
    )
    command = [sys.executable, "-m", "thinwire.train.memory", *flags_of(alone)]
    # Ranks share out the GPUs by LOCAL_WORLD_SIZE.
    variables = (
        {"OMP_NUM_THREADS": str(threads)} | env.copy() | {"LOCAL_WORLD_SIZE": str(config.workers)}
    )
    try:
        ran = subprocess.run(
            command, env=variables, capture_output=True, text=True, timeout=WITHIN_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"a rank's memory could not be measured: it had no first step within {WITHIN_S:g} s; "
            "--force starts without a measure"
        ) from error
    lines = ran.stderr.strip().splitlines()
    # Exit code 2 means invalid settings: show that message as it is.
    if ran.returncode == 2 and lines:
        raise ConfigError(lines[-1].removeprefix("thinwire train: "))
    if ran.returncode:
        reason = lines[-1] if lines else f"exit code {ran.returncode}"
        raise ConfigError(
            f"a rank's memory could not be measured ({reason}); --force starts without a measure"
        )
    return Usage(**json.loads(ran.stdout))


def free_bytes(root: Path = Path("/")) -> tuple[int, str]:
    """Return the bytes that are free and what limits them: the machine, or a control group above
    this process.

    Args:
        root: where /proc and /sys are.
    """
    meminfo = dict(
        line.split(":", 1)
        for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    )
    # The least of the machine's memory and every limit above this process; cache that the kernel
    # can drop counts as free.
    free = [(int(meminfo["MemAvailable"].split()[0]) * 1024, "MemAvailable")]
    for folder, limit, usage, cache in _groups(root):
        with suppress(OSError, ValueError):  # not there, or "max"
            most, now = (
                int((folder / name).read_text(encoding="ascii")) for name in (limit, usage)
            )
            stat = dict(
                line.split()
                for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines()
            )
            free.append((max(0, most - now + int(stat.get(cache, 0))), f"the limit of {folder}"))
    return min(free)


def _groups(root: Path) -> Iterator[tuple[Path, str, str, str]]:
    """Yield the control groups of this process and those above: a folder, and the names of its
    files for limit, usage and cache."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        # A line without controllers is version 2; version 1 has one line a controller.
        if not controllers:
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top, names = (
                root / "sys/fs/cgroup/memory",
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            )
        else:
            continue
        own = top / path.lstrip("/")
        # In a container the path may be the host's, and only the top is there.
        for folder in (
            own,
            *own.parents,
        ):
            if folder.is_relative_to(top):
                yield folder, *names


def _saved_bytes(model: str) -> int:
    """Return the bytes of a saved model's weights; 0 if `model` is no folder."""
    folder = Path(model)
    return (
        sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder.is_dir() else 0
    )


def _used() -> Usage:
    """Return the memory that this process has used (Linux): its peak without the pages of files,
    which processes share."""
    status = dict(
        line.split(":", 1)
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    )
    peak, files = (int(status[key].split()[0]) * 1024 for key in ("VmHWM", "RssFile"))
    return Usage(peak - files, files)


def _main() -> int:
    """Take the first steps of a run and print the memory that they took."""
    from thinwire.train.job import run
    from thinwire.train.setup import prepare_run
    from thinwire.train.show import Show

    parser = argparse.ArgumentParser()
    add_flags(parser)
    config = config_from(
        {name: value for name, value in vars(parser.parse_args()).items() if name in FIELDS}, None
    )
    try:
        with suppress(InterruptedError):  # it stops after the first step
            run(prepare_run(config), Show(), stop_requested=lambda: True)
    except ThinwireError as error:
        CommandOutput("thinwire train", as_json=False).failure(str(error))
        return 2
    sys.stdout.write(json.dumps(dataclasses.asdict(_used())) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main())
