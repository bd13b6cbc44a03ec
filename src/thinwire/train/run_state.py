"""Save what a run of `thinwire train` continues from, and restore it.

    model.NAME                 the weights that ranks have in common
    optimizer.KEY.NAME         on gradients: the state of the optimiser, equal on all ranks; on
                               local steps it is each rank's own, and part of `sync`
    sync.…                     the syncer's: residuals, anchors, flights, and on local steps each
                               rank's weights
    job                        step, rows read, fingerprints of model, strategy and text (JSON)
    rank0.curve, rankN.account the training curve, and what each rank has cost so far

Of a sharded model, `model[LOW:HIGH].NAME` and its like: see `elements`.
The world may be another one than at the save.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thinwire.engine import Syncer
from thinwire.engine.packed_json import pack_json, unpack_json
from thinwire.engine.saved import META
from thinwire.engine.shards import fsdp_modules, like, local_of, reshard
from thinwire.errors import AttachError, CheckpointError
from thinwire.strategy.fingerprint import fingerprint, must_be_known
from thinwire.strategy.identity import read_identity
from thinwire.text.words import error_text
from thinwire.train.elements import filled, runs_of, saved
from thinwire.train.everyone import Everyone
from thinwire.train.newest import JOB, Newest
from thinwire.train.parts import FORMAT
from thinwire.train.progress import Account
from thinwire.train.setup import Prepared
from thinwire.version import __version__

READS = (1, FORMAT)
_SYNC = f"sync.{META}"


@dataclass(frozen=True, eq=False)
class RunState:
    """The parts of a run that a checkpoint saves.

    curve: the training loss of each batch, in nats a token.
    validation: (step, loss) of each validation.
    resumed: the steps at which the run was continued.
    origin: a step, and the rows that all ranks had read before it.
    """

    prepared: Prepared
    model: nn.Module
    optimizer: torch.optim.Optimizer
    sync: Syncer
    everyone: Everyone
    account: Account
    curve: list[float]
    validation: list[tuple[int, float]]
    resumed: tuple[int, ...]
    origin: tuple[int, int]


@dataclass(frozen=True)
class Resumed:
    """The state from which a run continues. rows: read by all ranks together before `step`."""

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
        """Return from where batches count: as before in the same world, else from here, so that no
        row is read twice."""
        return self.origin if (world, batch) == (self.world, self.batch) else (self.step, self.rows)


def state_of(done: int, run: RunState) -> dict[str, Tensor]:
    """Return copies of everything that a run continues from. Collective if the weights of ranks
    differ."""
    # 1. The syncer's own state, and the weights that ranks have in common.
    sync = run.sync
    rank, world = run.everyone.driver.rank, run.everyone.driver.world
    batch = run.prepared.config.batch
    out = {f"sync.{name}": tensor.detach().cpu() for name, tensor in sync.state_dict().items()}
    with sync.common_weights() as model:
        reshard(fsdp_modules(model))
        out |= dict(saved("model", name, tensor) for name, tensor in model.state_dict().items())
    # 2. On gradients all ranks hold the same optimiser state; on local steps the syncer has it.
    if sync.strategy.on.clock == "backward":
        for name, param in run.model.named_parameters():
            for key, value in run.optimizer.state.get(param, {}).items():
                out |= [saved("optimizer", f"{key}.{name}", torch.as_tensor(value))]
    # 3. What identifies the run, and where it stands. Rows add up over all stretches of the run,
    # each with its own world size and batch.
    step, rows = run.origin
    job = _prints(run.model, run.prepared) | {
        "step": done,
        "rows": rows + (done - step) * world * batch,
        "origin": run.origin,
        "world": world,
        "batch": batch,
        "validation": run.validation,
        "resumed": run.resumed,
    }
    out[JOB] = pack_json(job)
    # 4. Each rank's costs; the curve is rank 0's alone.
    out[f"rank{rank}.account"] = pack_json(run.account.state())
    if rank == 0:
        out["rank0.curve"] = torch.tensor(run.curve, dtype=torch.float64)
    return out


def restore(
    newest: Newest,
    where: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    sync: Syncer,
    everyone: Everyone,
    prepared: Prepared,
) -> Resumed:
    """Load a state into the model, the optimiser and the syncer.

    Raises:
        CheckpointError: it is of something else, or lacks what this rank needs.
    """
    state, rank = newest.tensors, everyone.driver.rank
    try:
        # 1. Refuse a state of something else.
        job = unpack_json(state[JOB])
        _must_fit(job, unpack_json(state[_SYNC]), model, prepared, where)
        # 2. In another world size, this rank continues the account of rank modulo the old size.
        of = rank % job["world"]
        if f"rank{of}.account" not in state:
            raise CheckpointError(
                f"{where} lacks the account of rank {of}: not every host's checkpoint is in reach"
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
            unpack_json(state[f"rank{of}.account"]),
        )
        # 3. Load all of it.
        _load(model, optimizer, sync, state)
    except CheckpointError:
        raise
    # Whatever a state of other code makes torch raise becomes one line for the user.
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
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error_text(error)
        raise CheckpointError(f"{where} cannot be loaded: {reason}") from error
    return resumed


def _prints(model: nn.Module, prepared: Prepared) -> dict[str, Any]:
    """Return what must be the same to continue: as text where it is short, else by hash."""
    shapes = sorted((name, list(param.shape)) for name, param in model.named_parameters())
    return {
        "format": FORMAT,
        "thinwire": __version__,
        "model": hashlib.sha256(json.dumps(shapes).encode()).hexdigest(),
        "model asked": prepared.config.model,
        "strategy": repr(prepared.strategy),
        "objective": repr(prepared.objective),
        "objective fingerprint": fingerprint(prepared.objective),
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
        other = f"format {job.get('format')!r} of thinwire {job.get('thinwire')}"
        raise CheckpointError(f"{where} has {other}; this version reads 1 and {FORMAT}")
    # earlier versions did not save the optimiser, and called the fraction of masked tokens share
    job = {"optimizer": "auto", **job}
    job["objective"] = str(job["objective"]).replace("share=", "fraction=")
    for name in (
        "model",
        "strategy",
        "objective",
        "text and tokenizer",
        "seed",
        "accumulate",
        "optimizer",
    ):
        if name == "strategy":
            strategy = read_identity(sync, where)
            same = (
                strategy.is_of(prepared.strategy)
                # the syncer accepts it with a warning, or refuses it with a reason
                or strategy.differs_in_schedule_alone(prepared.strategy)
            )
        else:
            # versions before fingerprints saved the objective's text alone
            by = f"{name} fingerprint" if f"{name} fingerprint" in job else name
            if by != name:
                must_be_known(job[by], where, str(job.get("thinwire")))
            same = job[by] == own[by]
        if not same:
            shown = "model asked" if name == "model" else name
            sides = (
                "" if name == "text and tokenizer" else f" (saved: {job[shown]}; now: {own[shown]})"
            )
            raise CheckpointError(
                f"{where} is of another {name}{sides}: resume with what it was saved with, or "
                "choose another --out"
            )


def _load(
    model: nn.Module, optimizer: torch.optim.Optimizer, sync: Syncer, state: dict[str, Tensor]
) -> None:
    # Weights that ranks have in common, then the optimiser by parameter name. The syncer comes
    # last: on local steps it puts each rank's own weights in their place.
    reshard(fsdp_modules(model))
    own, weights = model.state_dict(), runs_of("model", state)
    if fsdp_modules(model):
        with torch.no_grad():
            for name, value in own.items():
                local_of(value).copy_(filled(weights.get(name, []), value, name))
    else:  # whole ones, whose names it compares, too
        model.load_state_dict(
            {
                name: filled(runs, own[name], name) if name in own else runs[0][2]
                for name, runs in weights.items()
            }
        )
    params: dict[str, Any] = dict(model.named_parameters())
    # Scalars such as Adam's step counter stay on the CPU, as torch keeps them.
    for key_and_name, runs in runs_of("optimizer", state).items():
        key, name = key_and_name.split(".", 1)
        param, value = params[name], runs[0][2]
        optimizer.state[param][key] = (
            value.clone()
            if value.dim() == 0
            else like(param, filled(runs, param, key_and_name).to(param.device, copy=True))
        )
    sync.load_state_dict(
        {
            name.removeprefix("sync."): tensor
            for name, tensor in state.items()
            if name.startswith("sync.")
        }
    )
