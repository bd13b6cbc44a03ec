"""Manage the output folder of a run: its files, its lock, and what must not be overwritten.

config.toml              the settings, to say them again
checkpoints/host-NAME/   one folder a step, of this host's ranks (safetensors)
model/                   save_pretrained: weights, configuration, tokenizer
run.json  plot.svg       figures, the loss curve and the bytes
tensorboard/             events
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import re
import shutil
import socket
import time
from pathlib import Path

import tomli_w

from thinwire import env
from thinwire.errors import ConfigError
from thinwire.train.config import TrainConfig
from thinwire.train.parallel import chosen_settings

CONFIG, RUN, PLOT = "config.toml", "run.json", "plot.svg"
MODEL, EVENTS, CHECKPOINTS = "model", "tensorboard", "checkpoints"
LOCK, LAUNCHER = ".lock", ".launcher"
OURS = {CONFIG, RUN, PLOT, MODEL, EVENTS, CHECKPOINTS, LOCK}
ALONE = "a run on one host"
WRITTEN, LOOK_S = 40, 0.05  # looks at a lock that is held and does not yet say by which run


def default_out(config: TrainConfig) -> TrainConfig:
    """Return the settings with an output folder: `runs/MODEL-STRATEGY` if none is given.

    Example:
        >>> default_out(TrainConfig(model="gpt2-nano", strategy="diloco,period=30")).out
        'runs/gpt2-nano-diloco-period-30'
    """
    if config.out:
        return config
    words = (
        re.sub(r"[^A-Za-z0-9.]+", "-", Path(word).name).strip("-")
        for word in (config.model, config.strategy)
    )
    return dataclasses.replace(config, out="runs/" + "-".join(words))


class RunFolder:
    """The output folder of a run. The first rank of each host claims it; the other ranks share it.

    Hosts may each have their own disk, or one between them: then whoever comes first holds the
    lock, with the run's name in it.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self.restarted = False
        """The launcher that started this process has started the run in the folder, too: it is the
        same run, started again."""

    def acquire(self, *, resume: bool, overwrite: bool) -> RunFolder:
        """Lock the folder for this run, until it is closed or the process ends.

        Args:
            resume: continue the run in it.
            overwrite: delete the run in it first.

        Raises:
            ConfigError: it holds another run or other files, is used by a running one, or cannot be
                written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # 1. Lock; the first process of a host gets a lock, other hosts of the run none.
            self._lock = self._locked()
            try:
                # 2. A launcher that has signed the folder starts its own ranks again: it needs no
                # --resume.
                self.restarted = self._signed()
                if self._lock is not None and not self.restarted:
                    self._take(resume, overwrite)
                self._sign()
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise ConfigError(f"--out {self.path}: {error.strerror}") from error
        return self

    @property
    def held(self) -> bool:
        """Return whether this process writes the files that all ranks of the folder share."""
        return self._lock is not None

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _locked(self) -> int | None:
        """Take the lock and return it; `None` if another host of this run has it."""
        lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        # The lock file holds the run's id, so that another host of the run can tell it from a
        # stranger.
        ours = _run().encode()
        for _ in range(WRITTEN):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if held := os.pread(lock, 4096, 0):
                    break
                time.sleep(LOOK_S)  # it has just been taken
            else:
                os.ftruncate(lock, 0)
                os.pwrite(lock, ours, 0)
                return lock
        os.close(lock)
        if held == ours != ALONE.encode():
            return None
        raise ConfigError(
            f"--out {self.path}: another run that is going on writes there; choose another folder"
        )

    def _take(self, resume: bool, overwrite: bool) -> None:
        names = {entry.name for entry in self.path.iterdir()}
        # The launcher's own files and unfinished writes are nobody's results.
        held = {
            name
            for name in names - {LOCK}
            if not name.startswith(LAUNCHER) and not name.endswith(".partial")
        }
        foreign = sorted(held - OURS)
        # Refuse a folder of other things before anything is deleted.
        if foreign and not held & {CONFIG, CHECKPOINTS}:
            raise ConfigError(
                f"--out {self.path}: the folder holds {foreign[0]!r}, which is no run's; choose "
                "an empty or a new one"
            )
        if held and overwrite:
            for name in (*held & OURS, *(name for name in names if name.startswith(LAUNCHER))):
                target = self.path / name
                shutil.rmtree(target) if target.is_dir() else target.unlink()
        elif held and not resume:
            raise ConfigError(
                f"--out {self.path}: a run is there already; --resume continues it, "
                "--overwrite deletes it, or choose another"
            )

    def _signed(self) -> bool:
        """Return whether this host's launcher has started a run here before."""
        launcher, note = _launcher(), self.path / _note()
        return (
            launcher is not None and note.exists() and note.read_text(encoding="utf-8") == launcher
        )

    def _sign(self) -> None:
        launcher = _launcher()
        if launcher is not None:
            self.write(_note(), launcher)

    def write_config(self, config: TrainConfig) -> None:
        """Write `config.toml`, from which `thinwire train --config` repeats the run."""
        of_this_start = ("resume", "overwrite", "out", "force", "node_rank", "master")
        values = {
            name: value
            for name, value in chosen_settings(config).items()
            if name not in of_this_start
        }
        self.write(CONFIG, tomli_w.dumps(values))

    def write(self, name: str, text: str) -> Path:
        """Write a file completely or not at all, and return its path."""
        target, partial = self.path / name, self.path / f".{name}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)
        return target


def _run() -> str:
    """Return what identifies a run over several hosts: the same on all of its ranks."""
    values = [env.text(name) for name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")]
    several = env.world_size() > env.local_world_size()
    return " ".join(values) if several else ALONE


def _note() -> str:
    """Return the name of the file in which this host's launcher is recorded."""
    return f"{LAUNCHER}-{socket.gethostname()}"


def _launcher() -> str | None:
    """Identify the launcher that started this process, by its process id and start time; `None`
    without one.

    A count of restarts would not do: over several machines each agent counts its own.
    """
    if not env.is_set("TORCHELASTIC_RUN_ID"):
        return None
    try:
        started = (
            Path(f"/proc/{os.getppid()}/stat")
            .read_text(encoding="utf-8")
            .rpartition(")")[2]
            .split()[19]
        )
    except OSError:  # no Linux, or the launcher is gone
        started = env.text("TORCHELASTIC_RUN_ID")
    return f"{os.getppid()} {started}"
