"""Ranks find each other, also after a restart.

torch's elastic agent keeps one store for all attempts (torch 2.13), so a rank that was started again would read the addresses that the
others had before, and connect to nobody. Here ranks first agree on who takes part this time:

    each rank writes a name of its own, fresh      join/R
    rank 0 writes down the names that it reads     roster
    who finds its own name there, says so          here/ROSTER/R
    when all have, rank 0 lets them go             go/ROSTER

A rank of an earlier attempt never answers, so its name is replaced sooner or later, and everything that is stored afterwards lies below
the roster's own prefix.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from thinwire.drive.torch import transport_cause
from thinwire.errors import FlightError

POLL_S = 0.05
ROOT = "thinwire-meet"


def join(backend: str, timeout: timedelta) -> None:
    """`init_process_group` for this attempt, by the launcher's variables.

    Raises:
        FlightError: some ranks did not come in time, which are named, or cannot be reached.
    """
    try:
        base, rank, world = next(rendezvous("env://", timeout=timeout))  # type: ignore[no-untyped-call,unused-ignore]
        store = PrefixStore(ROOT, base)
        roster = met(store, rank, world, timeout)
        dist.init_process_group(backend, store=PrefixStore(f"{ROOT}/{roster}", base), rank=rank, world_size=world, timeout=timeout)
    except RuntimeError as error:  # torch's own for stores and connections
        raise FlightError(
            f"ranks could not connect ({transport_cause(error)}): does every machine reach the others' addresses? "
            "See thinwire doctor on host name and GLOO_SOCKET_IFNAME"
        ) from error


def met(store: Any, rank: int, world: int, timeout: timedelta) -> str:
    """The roster of this attempt, the same on every rank.

    Raises:
        FlightError: ranks that did not come are named.
    """
    own = uuid.uuid4().hex
    store.set(f"join/{rank}", own)
    until = time.monotonic() + timeout.total_seconds()
    names: list[str] = []
    while time.monotonic() < until:
        if rank == 0:
            names = _names(store, world)
            if all(names):
                roster = _digest(names)
                store.set("roster", json.dumps(names))
                if all(store.check([f"here/{roster}/{other}"]) for other in range(1, world)) and names == _names(store, world):
                    store.set(f"go/{roster}", b"1")
                    return roster
        elif store.check(["roster"]):
            names = json.loads(store.get("roster"))
            if len(names) == world and names[rank] == own:
                roster = _digest(names)
                store.set(f"here/{roster}/{rank}", b"1")
                if store.check([f"go/{roster}"]):
                    return roster
        time.sleep(POLL_S)
    absent = [str(other) for other in range(world) if not store.check([f"join/{other}"])]
    who = f"ranks {', '.join(absent)} never came" if absent else "ranks of an earlier attempt did not come back"
    raise FlightError(f"rank {rank} waited {timeout.total_seconds():g} s at the start: {who}")


def _names(store: Any, world: int) -> list[str]:
    return [store.get(f"join/{rank}").decode() if store.check([f"join/{rank}"]) else "" for rank in range(world)]


def _digest(names: list[str]) -> str:
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]
