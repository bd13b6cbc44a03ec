"""What a checkpoint of the job holds, and how a run goes on from one, in the same world or another.

model.NAME              the weights that ranks have in common optimizer.KEY.NAME      on gradients,
the optimiser's state, equal on all ranks; on local steps it is each rank's own, in `sync` sync.…
the syncer's: residuals, anchors, flights, and on local steps each rank's weights job
step, rows read, fingerprints of model, strategy and text (JSON) rank0.curve, rankN.account
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import struct
import uuid
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from thinwire.engine import Syncer
from thinwire.engine.checkpoint import another_period, pack_json, unpack_json
from thinwire.engine.saved import META
from thinwire.errors import AttachError, CheckpointError
from thinwire.models.hugging_face import save_pretrained
from thinwire.say import Say
from thinwire.train.checkpoints import Checkpoints, Member
from thinwire.train.config import TrainConfig
from thinwire.train.folder import CHECKPOINTS, EVENTS, MODEL, RunFolder
from thinwire.train.host_ranks import host_groups
from thinwire.train.newest import JOB, Newest, newest_whole
from thinwire.train.parts import FORMAT
from thinwire.version import __version__
from thinwire.words import told

if TYPE_CHECKING:
    from thinwire.train.job import Run
    from thinwire.train.setup import Prepared

READS = (1, FORMAT)
_SYNC = f"sync.{META}"


@dataclass(frozen=True)
class Resumed:
    """What a run goes on from. rows: read by all ranks together before `step`."""

    step: int
    rows: int
    curve: list[float]
    validation: list[tuple[int, float]]
    resumed: tuple[int, ...]
    origin: tuple[int, int]
    world: int
    batch: int
    account: dict[str, Any]

    def origin_for(self, world: int, batch: int) -> tuple[int, int]:
        """From where batches count: as before in the same world, else from here, so that no row
        comes twice."""
        return self.origin if (world, batch) == (self.world, self.batch) else (self.step, self.rows)


class Saver:
    """Keeps a run's checkpoints and its model, and knows what to go on from.

    Args:
        folder: the run's output folder.
        every: steps between two checkpoints; 0: only at the end.
        keep: how many of the newest stay.
        resume: go on from the newest, where there is one.
        say: told what happens.
    """

    def __init__(self, folder: RunFolder, *, every: int, keep: int, resume: bool, say: Say) -> None:
        self.folder, self._every, self._keep, self._resume, self._say = (
            folder,
            every,
            keep,
            resume,
            say,
        )
        self._checkpoints: Checkpoints | None = None
        self._alone = True
        self._saved = -1  # the step of the last checkpoint that was begun

    def join(self, sync: Syncer) -> None:
        """Find out which ranks share this host; all ranks call it alike."""
        mine = json.dumps(
            [socket.gethostname(), os.environ.get("GROUP_RANK", "0"), uuid.uuid4().hex]
        ).encode()
        by_rank = [json.loads(each) for each in sync.all_gather(mine, "attach: which host")]
        host_of = [(name, number) for name, number, _ in by_rank]
        order = list(dict.fromkeys(host_of))
        hosts = [order.index(each) for each in host_of]
        rank = sync.driver.rank
        group = host_groups(hosts, timedelta(minutes=10)) if sync.driver.world > 1 else None
        leader = hosts.index(hosts[rank]) == rank
        self._alone = len(order) == 1
        name = _name(order, hosts[rank])
        if self._alone:  # a container that is started anew goes by another name
            name = _only(self.folder.path / CHECKPOINTS, name)
        run = by_rank[0][2]  # rank 0's, on all
        member = Member(name, leader, group, rank, sync.driver.world, run)
        folder = self.folder.path / CHECKPOINTS
        self._checkpoints = Checkpoints(
            folder, member, self._keep, lambda text: self._say.note(text, rank)
        )

    @property
    def checkpoints(self) -> Checkpoints:
        assert self._checkpoints is not None, "join first"
        return self._checkpoints

    def write_config(self, config: TrainConfig) -> None:
        """`config.toml`, once it is known that the run can be gone on with."""
        if self.folder.held:
            self.folder.write_config(config)

    def due(self, before: int, done: int) -> bool:
        """Whether a checkpoint is due in the round of steps from `before` to `done`."""
        return bool(self._every) and before // self._every < done // self._every

    def save(self, done: int, run: Run) -> None:
        """A checkpoint after `done` steps; it is written while training goes on."""
        if done == self._saved:
            return
        self._saved = done
        common = done + 1
        if not self._alone:  # what one host could not save, the others must not delete for it
            newest = struct.pack("<q", max(self.checkpoints.steps(), default=-1))
            label = f"step {done}: which checkpoints are whole"
            common = min(
                struct.unpack("<q", each)[0] for each in run.sync.all_gather(newest, label)
            )
        self.checkpoints.save(done, _state(done, run), common)

    def save_model(self, model: nn.Module, tokenizer: Any) -> dict[str, str]:
        """The `save_pretrained` folder: weights, configuration and tokenizer, whole or not at all;
        once in each folder."""
        target = self.folder.path / MODEL
        partial = target.with_name(f".{MODEL}.partial")
        if self.folder.held:
            shutil.rmtree(partial, ignore_errors=True)
            try:
                save_pretrained(model, tokenizer, partial)
                shutil.rmtree(target, ignore_errors=True)
                partial.rename(target)
            except Exception as error:  # safetensors has a kind of its own for a full disk
                shutil.rmtree(partial, ignore_errors=True)
                raise CheckpointError(
                    f"the model could not be saved into {target}: {told(error)}"
                ) from error
        return {"model": str(target), "tensorboard": str(self.folder.path / EVENTS)}

    def finish(self) -> dict[str, str]:
        """Wait for the checkpoint on its way.

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
        self, model: nn.Module, optimizer: torch.optim.Optimizer, sync: Syncer, prepared: Prepared
    ) -> Resumed | None:
        """Take up the newest checkpoint that every host has; `None` where there is none.

        Raises:
            CheckpointError: it is damaged, or of another model, strategy, text or version.
        """
        wishes = sync.all_gather(bytes([self._resume]), "resume: whether to")
        if not any(
            wish[0] for wish in wishes
        ):  # a machine whose launcher has started it again knows; the others hear of it
            return None
        newest = newest_whole(self.checkpoints, sync, self._say)
        if newest is None:
            self._say.note(f"no checkpoint in {self.folder.path} yet: starting from the first step")
            return None
        where = self.checkpoints.path(newest.step)
        failure, resumed = "", None
        try:
            resumed = _take_up(newest, f"the checkpoint {where}", model, optimizer, sync, prepared)
        except CheckpointError as error:
            failure = str(error)
        failures = [
            each.decode()
            for each in sync.all_gather(failure.encode(), "resume: whether all have taken it up")
        ]
        if any(failures):
            raise CheckpointError("; ".join(dict.fromkeys(filter(None, failures))))
        self.checkpoints.forget_after(newest.step, newest.damaged)
        self._say.note(f"going on from step {newest.step}, saved in {where}")
        return resumed


def _take_up(
    newest: Newest,
    where: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    sync: Syncer,
    prepared: Prepared,
) -> Resumed:
    """Load a state into the model, the optimiser and the syncer.

    Raises:
        CheckpointError: it is of something else, or lacks what this rank needs.
    """
    state, rank = newest.tensors, sync.driver.rank
    try:
        job = unpack_json(state[JOB])
        _must_fit(job, unpack_json(state[_SYNC]), model, prepared, where)
        saved = rank % job["world"]
        if f"rank{saved}.account" not in state:
            raise CheckpointError(
                f"{where} lacks the account of rank {saved}: not every host's checkpoint is in "
                "reach"
            )
        resumed = Resumed(
            newest.step,
            job["rows"],
            state["rank0.curve"].tolist()
            if "rank0.curve" in state
            else [float("nan")] * newest.step,
            [(int(at), float(loss)) for at, loss in job["validation"]],
            tuple(job["resumed"]),
            tuple(job["origin"]),
            job["world"],
            job["batch"],
            unpack_json(state[f"rank{saved}.account"]),
        )
        _load(model, optimizer, sync, state)
    except CheckpointError:
        raise
    except (
        AttachError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        ArithmeticError,
        RuntimeError,
    ) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else told(error)
        raise CheckpointError(f"{where} cannot be taken up: {reason}") from error
    return resumed


def _only(folder: Path, name: str) -> str:
    """The name of the only host that has checkpoints there, or this one's own."""
    found = [path.name.removeprefix("host-") for path in folder.glob("host-*")]
    return found[0] if len(found) == 1 else name


def _name(hosts: list[tuple[str, str]], mine: int) -> str:
    """A host's name, with a number where several go by the same.

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


def _state(done: int, run: Run) -> dict[str, Tensor]:
    """Everything to go on from, as copies. Collective where ranks' weights differ."""
    sync, rank = run.sync, run.rank
    out = {f"sync.{name}": tensor.detach().cpu() for name, tensor in sync.state_dict().items()}
    with sync.common_weights() as model:
        out |= {f"model.{name}": _copy(tensor) for name, tensor in model.state_dict().items()}
    if sync.strategy.on.clock == "backward":
        for name, param in run.model.named_parameters():
            for key, value in run.optimizer.state.get(param, {}).items():
                out[f"optimizer.{key}.{name}"] = _copy(torch.as_tensor(value))
    step, rows = run.origin
    job = _prints(run.model, run.prepared) | {
        "step": done,
        "rows": rows + (done - step) * run.world * run.config.batch,
        "origin": run.origin,
        "world": run.world,
        "batch": run.config.batch,
        "validation": run.validation,
        "resumed": run.resumed,
    }
    out[JOB] = pack_json(job)
    out[f"rank{rank}.account"] = pack_json(run.account.state())
    if rank == 0:
        out["rank0.curve"] = torch.tensor(run.curve, dtype=torch.float64)
    return out


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()


def _prints(model: nn.Module, prepared: Prepared) -> dict[str, Any]:
    """What must be the same to go on: told in words where it is short, else by hash."""
    shapes = sorted((name, list(param.shape)) for name, param in model.named_parameters())
    return {
        "format": FORMAT,
        "thinwire": __version__,
        "model": hashlib.sha256(json.dumps(shapes).encode()).hexdigest(),
        "model asked": prepared.config.model,
        "strategy": repr(prepared.strategy),
        "objective": repr(prepared.objective),
        "text and tokenizer": prepared.tokens.digest,
        "seed": prepared.config.seed,
        "accumulate": prepared.config.accumulate,
        "optimizer": prepared.config.optimizer,
    }


def _must_fit(
    job: dict[str, Any], sync: dict[str, Any], model: nn.Module, prepared: Prepared, where: str
) -> None:
    own = _prints(model, prepared)
    if job.get("format") not in READS:
        saved = f"format {job.get('format')!r} of thinwire {job.get('thinwire')}"
        raise CheckpointError(f"{where} has {saved}; this version reads 1 and {FORMAT}")
    job = {"optimizer": "auto", **job}  # older ones say nothing of it
    for name in (
        "model",
        "strategy",
        "objective",
        "text and tokenizer",
        "seed",
        "accumulate",
        "optimizer",
    ):
        if name == "strategy" and another_period(sync, prepared.strategy):
            continue  # the syncer takes it up with a warning, or says why it cannot
        if job[name] != own[name]:
            shown = "model asked" if name == "model" else name
            sides = (
                ""
                if name == "text and tokenizer"
                else f" (saved: {job[shown]}; asked: {own[shown]})"
            )
            raise CheckpointError(
                f"{where} is of another {name}{sides}: resume with what it was saved with, or "
                "choose another --out"
            )


def _load(
    model: nn.Module, optimizer: torch.optim.Optimizer, sync: Syncer, state: dict[str, Tensor]
) -> None:
    weights = {
        name.removeprefix("model."): tensor
        for name, tensor in state.items()
        if name.startswith("model.")
    }
    model.load_state_dict(weights)
    params = dict(model.named_parameters())
    for name, tensor in state.items():
        if name.startswith("optimizer."):
            _, key, param = name.split(".", 2)
            own = params[param]
            optimizer.state[own][key] = (
                tensor.clone() if tensor.dim() == 0 else tensor.to(own.device, copy=True)
            )
    sync.load_state_dict(
        {
            name.removeprefix("sync."): tensor
            for name, tensor in state.items()
            if name.startswith("sync.")
        }
    )
