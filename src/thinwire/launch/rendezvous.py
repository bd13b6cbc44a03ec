"""Let ranks find each other, also after a restart.

A launcher keeps one store for all attempts, so a rank that was started again would read the
addresses that the others had before, and connect to nobody. Here ranks first agree on who takes
part this time:

    each rank writes a name of its own, fresh      join/R
    rank 0 writes down the names that it reads     roster
    a rank that reads its own name there answers   here/ROSTER/R
    when all have, rank 0 lets them go             go/ROSTER

A rank of an earlier attempt never answers, so its name is replaced sooner or later, and everything
that is stored afterwards lies below the roster's own prefix. Whoever reaches the store may write
there, so names and rosters are parsed as what they should be, or ignored.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
import uuid
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore

from thinwire import env
from thinwire.drive.interfaces import VARIABLE, leading_to, reachable
from thinwire.drive.torch import transport_cause
from thinwire.errors import ConfigError, FlightError
from thinwire.launch.store import Endpoint, Note, reach, serve

POLL_S = 0.05
ROOT = "thinwire-meet"
NAME = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, eq=False)
class Meeting:
    """A rank that meets the others: where and as whom it meets them, from the launcher's variables.

    Args:
        rank: this rank; world: how many there are.
        endpoint: where the store is served.
        store: the store, where this rank serves it.
    """

    rank: int
    world: int
    endpoint: Endpoint
    store: Any
    note: Note

    def join(self, backend: str, timeout: timedelta) -> Any:
        """Make the default process group of this attempt, and return the store.

        Raises:
            FlightError: some ranks did not come in time, which are named, or cannot be reached.
        """
        base = self.store or reach(self.endpoint, timeout, self.note)
        try:
            base.set_timeout(timeout)
            # A roster is one attempt's own: its prefix hides the keys of earlier attempts.
            roster = met(PrefixStore(ROOT, base), self.rank, self.world, timeout)
            own = PrefixStore(f"{ROOT}/{roster}", base)
            dist.init_process_group(
                backend, store=own, rank=self.rank, world_size=self.world, timeout=timeout
            )
        except RuntimeError as error:  # torch's own for stores and connections
            raise FlightError(
                f"ranks could not connect ({transport_cause(error)}): does every machine reach "
                "the others' addresses? "
                f"{VARIABLE}={env.text(VARIABLE)} here; thinwire doctor lists the "
                "interfaces"
            ) from error
        return base


def unpickling_launcher(parent: str = "/proc/{}/cmdline") -> bool:
    """Return whether torchrun started this rank with a rendezvous that unpickles what others may
    write (Linux).

    Args:
        parent: where a process's command line is read.
    """
    # torchrun names its backend in a variable; where that is absent, its command line shows it.
    if not env.is_set("TORCHELASTIC_RUN_ID"):
        return False
    try:
        words = (
            Path(parent.format(os.getppid()))
            .read_bytes()
            .replace(b"\0", b" ")
            .decode(errors="replace")
        )
    except OSError:  # no Linux, or the launcher is gone
        words = ""
    unpickles = env.text("PET_RDZV_BACKEND") == "c10d" or env.text("PET_STANDALONE", "0") != "0"
    return unpickles or re.search(r" --(standalone|rdzv[-_]backend[= ]c10d)\b", words) is not None


def meeting(note: Note) -> Meeting:
    """Read from the environment where ranks meet, choose gloo's interface, and serve the store if
    this rank should.

    It needs no other rank, so whatever cannot be is refused at once.

    Raises:
        ConfigError: a variable is absent or wrong, the address does not resolve, or the port is
            taken.
    """
    # 1. The variables of the launcher.
    rank, world = _number("RANK", 0), _number("WORLD_SIZE", 1)
    if rank >= world:
        raise ConfigError(f"RANK={rank} of WORLD_SIZE={world}: ranks are 0 to {world - 1}")
    endpoint = Endpoint(
        _variable("MASTER_ADDR"),
        _number("MASTER_PORT", 1, 65535),
        "MASTER_ADDR",
        several=world > env.local_world_size(world),
    )
    if unpickling_launcher():
        note(
            "warning: torchrun's c10d rendezvous runs what strangers write into its port as code. "
            "Start with thinwire train "
            "--workers or --nodes, or give torchrun --rdzv-backend=static with --node-rank, "
            "--master-addr and --master-port"
        )
    # 2. The way to the store, and the store itself where no launcher serves it.
    choose_interface(endpoint, note)
    held_by_launcher = env.text("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = serve(endpoint, note) if rank == 0 and not held_by_launcher else None
    return Meeting(rank, world, endpoint, store, note)


def choose_interface(endpoint: Endpoint, note: Note) -> None:
    """Let gloo use the interface that holds the store's address or leads to it, unless the user has
    named one."""
    # The user's choice stands; only Linux lists interfaces in a way that is read here.
    if env.text(VARIABLE) or sys.platform != "linux":
        return
    interface = next(filter(None, map(leading_to, endpoint.addresses())), None)
    if interface is None:
        there = ", ".join(map(str, reachable())) or "none with an address"
        raise ConfigError(
            f"{endpoint.what}={endpoint.host}: no interface of this machine leads there ({there}). "
            f"Correct it, or set {VARIABLE}"
        )
    env.put(VARIABLE, interface.name)
    if endpoint.several:
        note(
            f"ranks talk over {interface}, which leads to {endpoint.what}={endpoint.host}; "
            f"{VARIABLE} would "
            "choose another"
        )


def met(store: Any, rank: int, world: int, timeout: timedelta) -> str:
    """Return the roster of this attempt, the same on every rank.

    Raises:
        FlightError: ranks that did not come are named.
    """
    # Every rank writes a new random name. Rank 0 publishes all names; each rank answers under their
    # digest if its own name is current; rank 0 lets them go if no name has changed since. So a rank
    # that was restarted meanwhile makes all begin again.
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
                if all(
                    store.check([f"here/{roster}/{other}"]) for other in range(1, world)
                ) and names == _names(store, world):
                    store.set(f"go/{roster}", b"1")
                    return roster
        elif store.check(["roster"]):
            names = _roster(store.get("roster"))
            if len(names) == world and names[rank] == own:
                roster = _digest(names)
                store.set(f"here/{roster}/{rank}", b"1")
                if store.check([f"go/{roster}"]):
                    return roster
        time.sleep(POLL_S)
    # Out of time: name who is absent.
    absent = [str(other) for other, name in enumerate(_names(store, world)) if not name]
    who = (
        f"ranks {', '.join(absent)} never came"
        if absent
        else "ranks of an earlier attempt did not come back"
    )
    raise FlightError(f"rank {rank} waited {timeout.total_seconds():g} s at the start: {who}")


def _names(store: Any, world: int) -> list[str]:
    return [
        _name(store.get(f"join/{rank}")) if store.check([f"join/{rank}"]) else ""
        for rank in range(world)
    ]


def _name(data: bytes) -> str:
    """Return a rank's name, or an empty string if the bytes are none."""
    text = data.decode("ascii", "replace")
    return text if NAME.fullmatch(text) else ""


def _roster(data: bytes) -> list[str]:
    """Return the names that rank 0 has written, or none."""
    try:
        names = json.loads(data)
    except (ValueError, RecursionError):
        return []
    return (
        names
        if isinstance(names, list)
        and all(isinstance(name, str) and NAME.fullmatch(name) for name in names)
        else []
    )


def _digest(names: list[str]) -> str:
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]


def _variable(name: str) -> str:
    value = env.text(name)
    if not value:
        raise ConfigError(
            f"{name} is not set, and RANK is: a launcher sets both. Start with thinwire train "
            "--workers, or torchrun"
        )
    return value


def _number(name: str, least: int, most: int = 1 << 20) -> int:
    text = _variable(name)
    if not (text.isascii() and text.isdecimal() and least <= int(text) <= most):
        raise ConfigError(f"{name}={text}: expected an integer from {least} to {most}")
    return int(text)
