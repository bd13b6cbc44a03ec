"""Choose the checkpoint to continue from: the newest that is complete and undamaged on every host.

Each rank reads its host's checkpoint and checks its hashes; all then exchange what came of it, so
that all go back to the same older one where it is damaged anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from thinwire.engine.packed_json import unpack_json
from thinwire.errors import CheckpointError
from thinwire.text.output import CommandOutput
from thinwire.train.checkpoints import Checkpoints, Loaded
from thinwire.train.everyone import Everyone
from thinwire.train.parts import DamagedError

JOB = "job"
"""The tensor in which a run's own facts are."""


@dataclass(frozen=True)
class Newest:
    """The checkpoint to continue from, and the newer ones that are damaged."""

    step: int
    tensors: dict[str, Tensor]
    damaged: Collection[int]


def newest_whole(
    checkpoints: Checkpoints,
    everyone: Everyone,
    output: CommandOutput,
    needs: Callable[[str], bool] = lambda _: True,
) -> Newest | None:
    """Read the newest checkpoint that every host has complete; `None` if no host has any. All ranks
    call it alike.

    Args:
        checkpoints: this host's.
        everyone: all ranks.
        output: prints what is passed over.
        needs: whether this rank keeps a tensor, by its name; all are checked.

    Raises:
        CheckpointError: none is undamaged on every host, or another version wrote it.
    """
    damaged: dict[int, str] = {}
    steps = _common_steps(checkpoints, everyone)
    for step in reversed(steps):
        # 1. Read here, and exchange what came of it: no rank may decide alone.
        loaded, report = _read(checkpoints, step, needs)
        sent = everyone.all_gather(
            json.dumps(report).encode(), f"resume: whether step {step} is undamaged"
        )
        reports = [json.loads(each) for each in sent]
        # 2. Another version's checkpoint ends the search; a damaged one makes all go a step back.
        if refused := _reasons(reports, "refused"):
            raise CheckpointError(refused)
        reason = _reasons(reports, "damaged") or disagreement(reports)
        if loaded is not None and not reason:
            for note in loaded.notes:
                _note(checkpoints, output, note)
            return Newest(step, loaded.tensors, tuple(damaged))
        damaged[step] = reason
        _note(checkpoints, output, f"the checkpoint of step {step} is passed over: {reason}")
    if not steps:
        return None
    # 3. Steps, but none whole.
    shown = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
    raise CheckpointError(
        f"no checkpoint is whole and undamaged ({shown}); begin again with --overwrite, or choose "
        "another --out"
    )


def disagreement(reports: Sequence[dict[str, Any]]) -> str:
    """Return why the checkpoints of several hosts are not from one save, or an empty string.

    Example:
        >>> ant = {"host": "ant", "run": "x", "world": 4, "ranks": [0, 1]}
        >>> disagreement([ant, ant | {"host": "bee"}])
        'those of hosts ant and bee both hold rank 0: one is a copy of the other'
        >>> disagreement([ant, ant | {"host": "bee", "ranks": [2, 3]}])
        ''
    """
    # Ranks of one host report alike: one report a host is enough.
    hosts = {report["host"]: report for report in reports}
    first_name, first = next(iter(hosts.items()))
    holders: dict[int, str] = {}
    for name, report in hosts.items():
        if (report["run"], report["world"]) != (first["run"], first["world"]):
            return f"those of hosts {first_name} and {name} were saved by different runs"
        for rank in report["ranks"]:
            if rank in holders:
                return (
                    f"those of hosts {holders[rank]} and {name} both hold rank {rank}: one is a "
                    "copy of the other"
                )
            holders[rank] = name
    return ""


def _read(
    checkpoints: Checkpoints, step: int, needs: Callable[[str], bool]
) -> tuple[Loaded | None, dict[str, Any]]:
    """Read a step on this host; return it, and a report for the other ranks."""
    try:
        loaded = checkpoints.read(step, needs)
        _must_be_of(loaded.tensors, step, str(checkpoints.path(step)))
    except DamagedError as error:
        return None, {"damaged": str(error)}
    except CheckpointError as error:
        return None, {"refused": str(error)}
    # The manifest names run, world and ranks; torch's format has none.
    own = loaded.manifest
    save = (
        {"run": own.run, "world": own.world, "ranks": own.ranks}
        if own is not None
        else {"run": "", "world": 0, "ranks": []}
    )
    return loaded, {"host": checkpoints.member.host, **save}


def _must_be_of(tensors: dict[str, Tensor], step: int, where: str) -> None:
    """Refuse a state that is no checkpoint of `thinwire train`, or that was saved after another
    step."""
    if JOB not in tensors:
        raise CheckpointError(f"{where} is no checkpoint of thinwire train: it lacks {JOB!r}")
    job = unpack_json(tensors[JOB])
    saved = job.get("step") if isinstance(job, dict) else None
    if saved != step:
        raise DamagedError(
            f"{where} holds a checkpoint of step {saved}, not of the step that it is named after"
        )


def _reasons(reports: Sequence[dict[str, Any]], kind: str) -> str:
    """Join what ranks report, each reason once."""
    return "; ".join(dict.fromkeys(report[kind] for report in reports if kind in report))


def _note(checkpoints: Checkpoints, output: CommandOutput, text: str) -> None:
    """Print a line once on each host."""
    if checkpoints.member.leader:
        output.note(text, checkpoints.member.rank)


def _common_steps(checkpoints: Checkpoints, everyone: Everyone) -> list[int]:
    """List the steps of which every host has a checkpoint; none if no host has any.

    Raises:
        CheckpointError: some have, but not all of the same step.
    """
    # A step counts only if every rank sees it on its host.
    own = json.dumps(checkpoints.steps()).encode()
    by_rank: list[set[int]] = [
        set(json.loads(each)) for each in everyone.all_gather(own, "resume: which checkpoints")
    ]
    steps = set.intersection(*by_rank)
    if steps:
        return sorted(steps)
    if any(by_rank):
        shown = "; ".join(
            f"rank {rank}: {', '.join(map(str, sorted(held))) or 'none'}"
            for rank, held in enumerate(by_rank)
        )
        raise CheckpointError(
            f"no step has a checkpoint on every host (steps by rank: {shown}): give each host the "
            "folder it wrote, or start anew"
        )
    # No rank sees any: a checkpoint under another host's name is a renamed machine.
    elsewhere = sorted(path.parent.name for path in checkpoints.all_hosts.glob("host-*/step-*"))
    if elsewhere:
        raise CheckpointError(
            f"this host has no checkpoint in {checkpoints.folder}, but {elsewhere[0]} has: rename "
            "it if this host was it"
        )
    return []
