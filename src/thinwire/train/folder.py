"""The output folder of a run: what lies where, who may use it, and what must not be lost.

config.toml              the settings, to say them again
checkpoints/host-NAME/   one folder a step, of this host's ranks (torch DCP)
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
from pathlib import Path

import tomli_w

from thinwire.errors import ConfigError
from thinwire.train.config import TrainConfig

CONFIG, RUN, PLOT = "config.toml", "run.json", "plot.svg"
MODEL, EVENTS, CHECKPOINTS = "model", "tensorboard", "checkpoints"
LOCK, LAUNCHER = ".lock", ".launcher"
OURS = {CONFIG, RUN, PLOT, MODEL, EVENTS, CHECKPOINTS, LOCK, LAUNCHER}


def default_out(config: TrainConfig) -> TrainConfig:
    """The settings with an output folder: `runs/MODEL-STRATEGY` where none is given.

    Example:
        >>> default_out(TrainConfig(model="gpt2-nano", strategy="diloco,period=30")).out
        'runs/gpt2-nano-diloco-period-30'
    """
    if config.out:
        return config
    words = (re.sub(r"[^A-Za-z0-9.]+", "-", Path(word).name).strip("-") for word in (config.model, config.strategy))
    return dataclasses.replace(config, out="runs/" + "-".join(words))


class RunFolder:
    """An output folder. The first rank of each host claims it for this run; the others share it.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self.again = False
        """The launcher that started this process has started the run in the folder, too: it is the same run, started again."""

    def claim(self, *, resume: bool, overwrite: bool) -> RunFolder:
        """Make it this run's alone, until it is closed or the process ends.

        Args:
            resume: go on with the run in it.
            overwrite: delete the run in it first.

        Raises:
            ConfigError: it holds another run or other files, is used by a running one, or cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = self._locked()
            try:
                self._take(resume, overwrite)
                self._sign()
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise ConfigError(f"--out {self.path}: {error.strerror}") from error
        return self

    def close(self) -> None:
        """Let others have it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _locked(self) -> int:
        lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise ConfigError(f"--out {self.path}: another run that is going on writes there; choose another folder") from None
        return lock

    def _take(self, resume: bool, overwrite: bool) -> None:
        names = {entry.name for entry in self.path.iterdir()}
        launcher = _launcher()
        self.again = launcher is not None and LAUNCHER in names and (self.path / LAUNCHER).read_text(encoding="utf-8") == launcher
        if self.again:
            return
        held = {name for name in names - {LOCK, LAUNCHER} if not name.endswith(".partial")}
        foreign = sorted(held - OURS)
        if foreign and not held & {CONFIG, CHECKPOINTS}:
            raise ConfigError(f"--out {self.path}: the folder holds {foreign[0]!r}, which is no run's; choose an empty or a new one")
        if held and overwrite:
            for name in held & OURS:
                target = self.path / name
                shutil.rmtree(target) if target.is_dir() else target.unlink()
        elif held and not resume:
            raise ConfigError(
                f"--out {self.path}: a run is there already; --resume goes on with it, --overwrite deletes it, or choose another"
            )

    def _sign(self) -> None:
        launcher = _launcher()
        if launcher is not None:
            self.write(LAUNCHER, launcher)

    def write_config(self, config: TrainConfig) -> None:
        """`config.toml`: run it again with `thinwire train --config`."""
        told = {name: value for name, value in dataclasses.asdict(config).items() if name not in ("resume", "overwrite", "out")}
        self.write(CONFIG, tomli_w.dumps(told))

    def write(self, name: str, text: str) -> Path:
        """A file, whole or not at all."""
        target, partial = self.path / name, self.path / f".{name}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)
        return target


def _launcher() -> str | None:
    """The elastic agent that started this process, told apart from all others of this machine; `None` without one.

    A count of restarts would not do: over several machines each agent counts its own.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    try:
        started = Path(f"/proc/{os.getppid()}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except OSError:  # no Linux, or the launcher is gone
        started = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{os.getppid()} {started}"
