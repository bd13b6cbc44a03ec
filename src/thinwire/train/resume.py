"""Decide when a run saves checkpoints and its model, and which checkpoint it continues from."""

from __future__ import annotations

import json
import re
import shutil
import socket
import struct
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn

from thinwire import env
from thinwire.engine import Syncer
from thinwire.engine.shards import fsdp_modules
from thinwire.errors import CheckpointError
from thinwire.models.hugging_face import save_pretrained
from thinwire.text.output import CommandOutput
from thinwire.text.words import error_text
from thinwire.train.checkpoints import Checkpoints, Member
from thinwire.train.config import TrainConfig
from thinwire.train.elements import needed_by
from thinwire.train.everyone import Everyone
from thinwire.train.export import save_gathered
from thinwire.train.folder import CHECKPOINTS, EVENTS, MODEL, RunFolder
from thinwire.train.host_ranks import host_groups
from thinwire.train.newest import newest_whole
from thinwire.train.run_state import Resumed, RunState, restore, state_of
from thinwire.train.setup import Prepared


class Saver:
    """Save the checkpoints and the model of a run, and load the checkpoint to continue from.

    Args:
        folder: the run's output folder.
        every: steps between two checkpoints; 0: only at the end.
        keep: how many of the newest stay.
        resume: continue from the newest checkpoint, if there is one.
        output: prints what happens.
    """

    def __init__(
        self, folder: RunFolder, *, every: int, keep: int, resume: bool, output: CommandOutput
    ) -> None:
        self.folder, self._every, self._keep = folder, every, keep
        self._resume, self._output = resume, output
        self._checkpoints: Checkpoints | None = None
        self._alone = True
        self._saved = -1  # the step of the last checkpoint that was begun

    def join(self, everyone: Everyone) -> None:
        """Find out which ranks share this host; all ranks call it alike."""
        # 1. Every rank's host name and node number: containers may share a name, so both count.
        mine = json.dumps(
            [socket.gethostname(), env.text("GROUP_RANK", "0"), uuid.uuid4().hex]
        ).encode()
        by_rank = [json.loads(each) for each in everyone.all_gather(mine, "attach: which host")]
        host_of = [(name, number) for name, number, _ in by_rank]
        # 2. Hosts in order of first appearance; the first rank of a host leads it.
        order = list(dict.fromkeys(host_of))
        hosts = [order.index(each) for each in host_of]
        rank = everyone.driver.rank
        group = host_groups(hosts, timedelta(minutes=10)) if everyone.driver.world > 1 else None
        leader = hosts.index(hosts[rank]) == rank
        self._alone = len(order) == 1
        name = _name(order, hosts[rank])
        # A container that is started anew goes by another name.
        if self._alone:
            name = _only(self.folder.path / CHECKPOINTS, name)
        run = by_rank[0][2]  # rank 0's, on all
        member = Member(name, leader, group, rank, everyone.driver.world, run)
        folder = self.folder.path / CHECKPOINTS
        self._checkpoints = Checkpoints(
            folder, member, self._keep, lambda text: self._output.note(text, rank)
        )

    @property
    def checkpoints(self) -> Checkpoints:
        assert self._checkpoints is not None, "join first"
        return self._checkpoints

    def write_config(self, config: TrainConfig) -> None:
        """Write `config.toml`, once it is known that the run can be continued."""
        if self.folder.held:
            self.folder.write_config(config)

    def saves_at(self, before: int, done: int) -> bool:
        """Return whether a checkpoint is saved in the steps from `before` to `done`."""
        return bool(self._every) and before // self._every < done // self._every

    def save(self, done: int, run: RunState) -> None:
        """Save a checkpoint after `done` steps; it is written while training goes on."""
        if done == self._saved:
            return
        self._saved = done
        common = done + 1
        if not self._alone:  # what one host could not save, the others must not delete for it
            newest = struct.pack("<q", max(self.checkpoints.steps(), default=-1))
            label = f"step {done}: which checkpoints are whole"
            common = min(
                struct.unpack("<q", each)[0] for each in run.everyone.all_gather(newest, label)
            )
        self.checkpoints.save(done, state_of(done, run), common)

    def save_model(self, model: nn.Module, tokenizer: Any) -> dict[str, str]:
        """Write the `save_pretrained` folder, completely or not at all: weights, configuration and
        tokenizer."""
        target = self.folder.path / MODEL
        partial = target.with_name(f".{MODEL}.partial")
        # Only the process that holds the folder's lock writes; all return the same paths.
        sharded = bool(fsdp_modules(model))
        if sharded and not self.folder.held:
            save_gathered(model, tokenizer, None)
        if self.folder.held:
            shutil.rmtree(partial, ignore_errors=True)
            try:
                (save_gathered if sharded else save_pretrained)(model, tokenizer, partial)
                shutil.rmtree(target, ignore_errors=True)
                partial.rename(target)
            except Exception as error:  # safetensors has a kind of its own for a full disk
                shutil.rmtree(partial, ignore_errors=True)
                raise CheckpointError(
                    f"the model could not be saved into {target}: {error_text(error)}"
                ) from error
        return {"model": str(target), "tensorboard": str(self.folder.path / EVENTS)}

    def finish(self) -> dict[str, str]:
        """Wait for the checkpoint that is being written.

        Raises:
            CheckpointError: it was not saved.
        """
        self.checkpoints.wait()
        if self.checkpoints.failure is not None:
            raise CheckpointError(self.checkpoints.failure)
        return (
            {"checkpoint": str(self.checkpoints.path(self.checkpoints.steps()[-1]))}
            if self.checkpoints.steps()
            else {}
        )

    def load(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sync: Syncer,
        everyone: Everyone,
        prepared: Prepared,
    ) -> Resumed | None:
        """Load the newest checkpoint that every host has; `None` if there is none.

        Raises:
            CheckpointError: it is damaged, or of another model, strategy, text or version.
        """
        requests = everyone.all_gather(bytes([self._resume]), "resume: whether to")
        # Only a machine whose launcher has restarted it knows; the others learn of it here.
        if not any(request[0] for request in requests):
            return None
        # 1. The newest checkpoint that all hosts have whole.
        newest = newest_whole(self.checkpoints, everyone, self._output, needed_by(model))
        if newest is None:
            self._output.note(
                f"no checkpoint in {self.folder.path} yet: starting from the first step"
            )
            return None
        where = self.checkpoints.path(newest.step)
        # 2. Load it. A rank that cannot must not leave the others in a collective: all learn of it.
        failure, resumed = "", None
        try:
            resumed = restore(
                newest, f"the checkpoint {where}", model, optimizer, sync, everyone, prepared
            )
        except CheckpointError as error:
            failure = str(error)
        failures = [
            each.decode()
            for each in everyone.all_gather(
                failure.encode(), "resume: whether all have taken it up"
            )
        ]
        if any(failures):
            raise CheckpointError("; ".join(dict.fromkeys(filter(None, failures))))
        # 3. Checkpoints after it are deleted, the damaged ones moved aside.
        self.checkpoints.forget_after(newest.step, newest.damaged)
        self._output.note(f"going on from step {newest.step}, saved in {where}")
        return resumed


def _only(folder: Path, name: str) -> str:
    """Return the name of the only host that has checkpoints there, or this host's own."""
    names = [path.name.removeprefix("host-") for path in folder.glob("host-*")]
    return names[0] if len(names) == 1 else name


def _name(hosts: list[tuple[str, str]], mine: int) -> str:
    """Return the name of a host, with a number if several have the same.

    Example:
        >>> _name([("ant", "0"), ("bee", "1")], 1), _name([("ant", "0"), ("ant", "1")], 1)
        ('bee', 'ant-1')
    """
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", hosts[mine][0])
    namesakes = [host for host, _ in hosts]
    return (
        name
        if namesakes.count(hosts[mine][0]) == 1
        else f"{name}-{namesakes[:mine].count(hosts[mine][0])}"
    )
