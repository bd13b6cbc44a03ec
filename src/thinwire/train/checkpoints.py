"""Checkpoints that a kill, a full disk or a lost rank cannot harm: written beside, renamed when whole, by a thread.

Each host keeps its own, `checkpoints/host-NAME/step-00000480/`, a torch DCP folder of that host's ranks: a shared file system is not
needed. It is written as `.partial-…`, synced, and renamed once every rank of the host has written its part; the oldest beyond `keep` go
after that. Training goes on meanwhile: what is saved is a copy.

To resume, ranks agree on the newest step that every host has whole.
"""

from __future__ import annotations

import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from thinwire.engine.checkpoint import read_tensors
from thinwire.errors import CheckpointError
from thinwire.words import first_line

STEP, PARTIAL, ASIDE, PRUNED = "step-", ".partial-", ".aside-", ".pruned-"
_OF_A_PEER = ("gloo/transport", "ncclRemoteError", "Connection closed by peer", "Connection reset by peer")
"""What transports say of a rank that is gone."""


class Checkpoints:
    """One host's checkpoints, as one of its ranks sees them.

    Args:
        folder: the run's `checkpoints` folder.
        host: this host's name.
        group: a process group of this host's ranks, for these checkpoints alone; `None` where there is one rank.
        leader: whether this rank renames and deletes; one of each host does.
        keep: how many of the newest stay.
        failed: told, on the leader, of a save that did not succeed.
    """

    def __init__(self, folder: Path, host: str, group: Any, leader: bool, keep: int, failed: Callable[[str], None]) -> None:
        self.all_hosts, self.folder = folder, folder / f"host-{host}"
        self._group, self.leader, self._keep, self._tell = group, leader, keep, failed
        self._thread: threading.Thread | None = None
        self._common = 0
        self.failure: str | None = None
        """Why the last save did not succeed; `None` after one that did."""
        if leader:
            self.folder.mkdir(parents=True, exist_ok=True)
            for aside in self.folder.glob(f"{ASIDE}*"):  # of a process that was killed between two renames
                whole = self.folder / aside.name.removeprefix(ASIDE)
                if not whole.exists():
                    aside.rename(whole)
            for left in (path for mark in (PARTIAL, ASIDE, PRUNED) for path in self.folder.glob(f"{mark}*")):
                shutil.rmtree(left, ignore_errors=True)

    def steps(self) -> list[int]:
        """The steps of which this host has a whole checkpoint."""
        return sorted(int(path.name.removeprefix(STEP)) for path in self.folder.glob(f"{STEP}*"))

    def path(self, step: int) -> Path:
        return self.folder / f"{STEP}{step:08}"

    def save(self, step: int, state: dict[str, Tensor], common: int | None = None) -> None:
        """Write a state that nobody else will change, beside the training; a former save is waited for.

        Args:
            step: after which step it is.
            state: the tensors.
            common: the newest step that every host has whole; it and what is newer stays, whatever `keep` says.
        """
        self.wait()
        self._common = step + 1 if common is None else common
        self._thread = threading.Thread(target=self._save, args=(step, state), name="thinwire-checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until the save under way has ended; the group's timeout bounds it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def read(self, step: int, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
        """The tensors of a checkpoint, of every host whose folder is in reach, that are `wanted` by name.

        Raises:
            CheckpointError: it cannot be read.
        """
        out: dict[str, Tensor] = {}
        for path in sorted(self.all_hosts.glob(f"host-*/{STEP}{step:08}")):
            try:
                out |= read_tensors(path, wanted)
            except (Exception, CheckpointException) as error:  # whatever DCP meets in a damaged folder; its own is no Exception
                reason = root_cause(error)
                raise CheckpointError(
                    f"the checkpoint {path} cannot be read ({reason}); without it --resume takes the one before"
                ) from error
        return out

    def _save(self, step: int, state: dict[str, Tensor]) -> None:
        from torch.distributed.checkpoint.filesystem import FileSystemWriter
        from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

        partial = self.folder / f"{PARTIAL}{step:08}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dcp_save(state, storage_writer=FileSystemWriter(partial), process_group=self._group, no_dist=self._group is None)
            if self.leader:
                self._finish(partial, self.path(step))
            self.failure = None
        except (Exception, CheckpointException) as error:  # DCP wraps what any rank met, a full disk included
            reason = root_cause(error)
            self.failure = f"the checkpoint of step {step} was not saved: {reason}"
            if any(word in reason for word in _OF_A_PEER):
                self.failure = f"the checkpoint of step {step} was not saved: another rank of this host was lost meanwhile ({reason})"
            else:
                with suppress(OSError):  # torch's writer hides the errno of a full disk behind a word of its own
                    self.failure += f"; {shutil.disk_usage(self.folder).free / 1e6:,.1f} MB are free in {self.folder}"
            if self.leader:
                shutil.rmtree(partial, ignore_errors=True)
                last = self.steps()
                self._tell(f"{self.failure}. " + (f"The last good one is of step {last[-1]}" if last else "There is no earlier one"))

    def _finish(self, partial: Path, target: Path) -> None:
        sync_folder(partial)
        aside = target.with_name(ASIDE + target.name)
        if target.exists():  # a run that resumed at this step says the same again
            target.rename(aside)
        partial.rename(target)
        sync_folder(self.folder)
        shutil.rmtree(aside, ignore_errors=True)
        for step in self.steps()[: -self._keep]:
            if step < self._common:
                self._remove(step)

    def forget_after(self, step: int) -> None:
        """Delete what is newer than the step that all hosts go on from: another story now."""
        if self.leader:
            for newer in self.steps():
                if newer > step:
                    self._remove(newer)

    def _remove(self, step: int) -> None:
        pruned = self.path(step).with_name(f"{PRUNED}{step:08}")  # half a folder must not bear a whole one's name
        self.path(step).rename(pruned)
        shutil.rmtree(pruned, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Let a rename inside the folder outlast a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def root_cause(error: BaseException) -> str:
    """The innermost reason in one line: DCP hands on what ranks met as pairs of error and trace.

    Example:
        >>> root_cause(ValueError("no space"))
        'no space'
    """
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    while error.__cause__ is not None or (error.__context__ is not None and not isinstance(error, OSError)):
        error = error.__cause__ or error.__context__ or error
    return first_line(error)


def host_groups(hosts: Iterable[int], timeout: Any) -> Any:
    """A gloo group for the ranks of each host, `hosts` by rank; this rank's own. All ranks call it alike."""
    by_host: dict[int, list[int]] = {}
    for rank, host in enumerate(hosts):
        by_host.setdefault(host, []).append(rank)
    mine = None
    for members in by_host.values():
        made = dist.new_group(members, backend="gloo", timeout=timeout)
        if dist.get_rank() in members:
            mine = made
    return mine
