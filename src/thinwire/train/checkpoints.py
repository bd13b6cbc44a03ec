"""Write checkpoints that a kill, a full disk or a lost rank cannot damage.

A thread writes each checkpoint into a hidden folder and renames it once it is complete.

Each host keeps its own, `checkpoints/host-NAME/step-00000480/`, with a file of each of that host's
ranks (see `parts`): a shared file system is not needed. It is written as `.partial-…`, synced, and
renamed once every rank of the host has written its part; the oldest beyond `keep` go after that.
Training goes on meanwhile: what is saved is a copy.

What ranks of a host send each other for a save is JSON in tensors; every wait ends at the group's
timeout.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from thinwire.engine import dcp
from thinwire.errors import CheckpointError
from thinwire.text.words import first_line
from thinwire.train.host_ranks import all_gather, assigned, sizes_from
from thinwire.train.parts import (
    MANIFEST,
    DamagedError,
    Manifest,
    Part,
    read_manifest,
    read_part,
    write_manifest,
    write_part,
)

STEP, PARTIAL, ASIDE, PRUNED, DAMAGED = "step-", ".partial-", ".aside-", ".pruned-", ".damaged-"
_OF_A_PEER = (
    "gloo/transport",
    "ncclRemoteError",
    "Connection closed by peer",
    "Connection reset by peer",
)
"""What transports say of a rank that is gone."""


@dataclass(frozen=True)
class Member:
    """The position of a rank in a run.

    host: this host's name.
    leader: whether this rank renames and deletes; one of each host does.
    group: a process group of this host's ranks, for checkpoints alone; `None` where there is one
    rank.
    run: see `Manifest`.
    """

    host: str
    leader: bool = True
    group: Any = None
    rank: int = 0
    world: int = 1
    run: str = ""


@dataclass(frozen=True)
class Loaded:
    """The tensors that were read of a step.

    manifest: this host's; `None` in a torch DCP folder, which Thinwire wrote before it had a
    manifest.
    notes: what was left out.
    """

    tensors: dict[str, Tensor]
    manifest: Manifest | None = None
    notes: tuple[str, ...] = ()


class Checkpoints:
    """The checkpoints of one host, as one of its ranks sees them.

    Args:
        folder: the run's `checkpoints` folder.
        member: this rank.
        keep: how many of the newest stay.
        failed: called on the leader, with the reason, when a save has not succeeded.
    """

    def __init__(
        self, folder: Path, member: Member, keep: int, failed: Callable[[str], None]
    ) -> None:
        self.all_hosts, self.folder, self.member = folder, folder / f"host-{member.host}", member
        self._keep, self._report_failure = keep, failed
        self._thread: threading.Thread | None = None
        self._common = 0
        self.failure: str | None = None
        """Why the last save did not succeed; `None` after one that did."""
        # A process that was killed between two renames has left the old checkpoint aside and no new
        # one: it is put back. All other leftovers are incomplete.
        if member.leader:
            self.folder.mkdir(parents=True, exist_ok=True)
            for aside in self.folder.glob(f"{ASIDE}*"):
                whole = self.folder / aside.name.removeprefix(ASIDE)
                if not whole.exists():
                    aside.rename(whole)
            for leftover in (
                path for mark in (PARTIAL, ASIDE, PRUNED) for path in self.folder.glob(f"{mark}*")
            ):
                shutil.rmtree(leftover, ignore_errors=True)

    def steps(self) -> list[int]:
        """List the steps of which this host has a complete checkpoint."""
        return _numbers(self.folder, STEP)

    def path(self, step: int) -> Path:
        return self.folder / f"{STEP}{step:08}"

    def save(self, step: int, state: Mapping[str, Tensor], common: int | None = None) -> None:
        """Write a state in a thread, while training goes on; an earlier save is waited for. Nobody
        may change the tensors meanwhile.

        Args:
            step: after which step it is.
            state: the tensors; one that several ranks hold under the same name is taken to be equal
                on them.
            common: the newest step that every host has whole; it and what is newer stays, whatever
                `keep` is.
        """
        self.wait()
        self._common = step + 1 if common is None else common
        self._thread = threading.Thread(
            target=self._save, args=(step, state), name="thinwire-checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait for the save under way, at most until the timeout of the group."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def read(self, step: int, needs: Callable[[str], bool] = lambda _: True) -> Loaded:
        """Read the tensors of a step and check their hashes: those of every host of the same run
        whose folder is there. What is not needed is checked and dropped.

        Raises:
            DamagedError: it is not what was saved, or is of another step.
            CheckpointError: another version of Thinwire wrote it in another format.
        """
        # 1. A checkpoint of torch's format has an index and no manifest, and no hashes.
        own, folders = self.path(step), sorted(self.all_hosts.glob(f"host-*/{STEP}{step:08}"))
        if (own / dcp.INDEX).exists() and not (own / MANIFEST).exists():
            return Loaded(_read_dcp(path for path in folders if (path / dcp.INDEX).exists()))
        # 2. Collect the parts of all hosts of the same run; two holders of one rank mean a copied
        # folder.
        manifest = _manifest_of(own, step)
        tensors: dict[str, Tensor] = {}
        holders: dict[int, Path] = {}
        notes = []
        for folder in folders:
            other = manifest if folder == own else _manifest_of(folder, step)
            if (other.run, other.world) != (manifest.run, manifest.world):
                notes.append(f"{folder} was saved by another run than {own}: it is left out")
                continue
            for part in other.parts:
                if part.rank in holders:
                    raise DamagedError(
                        f"{folder} and {holders[part.rank]} both hold rank {part.rank}: one is a "
                        "copy of the other"
                    )
                holders[part.rank] = folder
                tensors |= read_part(folder, part, needs)
        return Loaded(tensors, manifest, tuple(notes))

    def _save(self, step: int, state: Mapping[str, Tensor]) -> None:
        partial = self.folder / f"{PARTIAL}{step:08}"
        try:
            self._write(step, state, partial)
            self.failure = None
        except Exception as error:  # a full disk here or on another rank, or a rank that is lost
            reason = first_line(error)
            self.failure = f"the checkpoint of step {step} was not saved: {reason}"
            # The reason came from another rank if its connection broke: then this disk is not to
            # blame.
            if any(word in reason for word in _OF_A_PEER):
                self.failure = (
                    f"the checkpoint of step {step} was not saved: another rank of this host was "
                    f"lost meanwhile ({reason})"
                )
            else:
                # safetensors hides the errno of a full disk behind a word of its own, so the free
                # space is shown with every other failure.
                with suppress(OSError):
                    self.failure += (
                        f"; {shutil.disk_usage(self.folder).free / 1e6:,.1f} MB are free in "
                        f"{self.folder}"
                    )
            # A failed save must leave no partial folder; the older checkpoints stay.
            if self.member.leader:
                shutil.rmtree(partial, ignore_errors=True)
                last = self.steps()
                self._report_failure(
                    f"{self.failure}. "
                    + (
                        f"The last good one is of step {last[-1]}"
                        if last
                        else "There is no earlier one"
                    )
                )

    def _write(self, step: int, state: Mapping[str, Tensor], partial: Path) -> None:
        member = self.member
        ranks = (
            [member.rank] if member.group is None else dist.get_process_group_ranks(member.group)
        )

        def inventory() -> dict[str, int]:
            if member.leader:
                shutil.rmtree(partial, ignore_errors=True)
            return {name: tensor.nbytes for name, tensor in state.items()}

        def part() -> dict[str, Any]:
            partial.mkdir(parents=True, exist_ok=True)
            return vars(write_part(partial, member.rank, {name: state[name] for name in mine}))

        def finish() -> None:
            if member.leader:
                write_manifest(
                    partial, Manifest(step, member.run, member.host, member.world, parts)
                )
                self._finish(partial, self.path(step))

        # 1. Ranks agree on who writes what: a tensor that several hold is written once.
        mine = assigned(self._gathered(inventory, sizes_from))[ranks.index(member.rank)]
        # 2. Each writes its file, and all learn its hashes.
        parts = tuple(self._gathered(part, Part.parse))
        if [each.rank for each in parts] != ranks:
            raise CheckpointError(
                f"ranks {ranks} save, and {[each.rank for each in parts]} have written"
            )
        # 3. The leader writes the manifest and renames; the others learn whether it could.
        self._gathered(finish, lambda _: None)

    def _gathered(self, make: Callable[[], Any], check: Callable[[Any], Any]) -> list[Any]:
        """Call `make` on every rank of the host and return all results by rank, checked. If one
        rank fails, all raise."""
        failed: Exception | None = None
        # 1. A rank that fails still sends, since the others wait in the collective.
        try:
            made = {"made": make()}
        except Exception as error:  # the others wait for this rank, whatever it met
            failed, made = error, {"failed": first_line(error)}
        payload = json.dumps(made).encode()
        sent = [payload] if self.member.group is None else all_gather(self.member.group, payload)
        # 2. Every rank learns of every failure; this rank's own is raised with its own traceback.
        if failed is not None:
            raise failed
        out = []
        for index, each in enumerate(sent):
            try:
                message = json.loads(each)
                if "failed" in message:
                    raise CheckpointError(
                        f"another rank of this host could not: {message['failed']}"
                    )
                out.append(check(message["made"]))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                if isinstance(error, CheckpointError):
                    raise
                raise CheckpointError(
                    f"rank {index} of this host sent what is no part of a save"
                ) from error
        return out

    def _finish(self, partial: Path, target: Path) -> None:
        # Contents first, then the names: a rename that survives a power cut must name whole files.
        sync_folder(partial)
        aside = target.with_name(ASIDE + target.name)
        if target.exists():  # a run that resumed at this step saves it again
            target.rename(aside)
        partial.rename(target)
        sync_folder(self.folder)
        shutil.rmtree(aside, ignore_errors=True)
        # Delete old checkpoints only below the newest that every host has: a resume may need it.
        for step in self.steps()[: -self._keep]:
            if step < self._common:
                self._remove(step)
        for step in _numbers(self.folder, DAMAGED):
            if step < self.steps()[0]:
                shutil.rmtree(self.folder / f"{DAMAGED}{step:08}", ignore_errors=True)

    def forget_after(self, step: int, damaged: Collection[int] = ()) -> None:
        """Delete the checkpoints that are newer than the step from which all hosts continue.

        Args:
            damaged: steps to keep out of the way instead, as `.damaged-…`, until they are older
                than all others.
        """
        if self.member.leader:
            for newer in self.steps():
                if newer > step:
                    self._remove(newer, DAMAGED if newer in damaged else PRUNED)

    def _remove(self, step: int, mark: str = PRUNED) -> None:
        renamed = self.folder / f"{mark}{step:08}"  # half a folder must not bear a whole one's name
        shutil.rmtree(renamed, ignore_errors=True)
        self.path(step).rename(renamed)
        if mark == PRUNED:
            shutil.rmtree(renamed, ignore_errors=True)


def _numbers(folder: Path, mark: str) -> list[int]:
    folders = (
        re.fullmatch(rf"{re.escape(mark)}(\d{{8,}})", path.name) for path in folder.glob(f"{mark}*")
    )
    return sorted(int(each[1]) for each in folders if each)


def _manifest_of(folder: Path, step: int) -> Manifest:
    manifest = read_manifest(folder)
    if manifest.step != step:
        raise DamagedError(
            f"{folder} holds a checkpoint of step {manifest.step}, not of the step that it is "
            "named after"
        )
    return manifest


def _read_dcp(folders: Iterable[Path]) -> dict[str, Tensor]:
    """Read the tensors of torch DCP folders, which have no hashes."""
    out: dict[str, Tensor] = {}
    for folder in folders:
        try:
            out |= dcp.read_tensors(folder, lambda _: True)
        except CheckpointError as error:
            raise DamagedError(str(error)) from error
    return out


def sync_folder(path: Path) -> None:
    """Flush a folder to the disk, so that a rename inside it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
