"""Start the ranks of one machine, start them again after a failure, and report how they ended.

The launcher serves the store in which ranks meet, so the store outlives every attempt. On one
machine it listens on loopback only. Ranks print their own errors; the launcher prints only what no
rank could.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from thinwire import env
from thinwire.launch.child import ERROR_FILE, LAUNCHER, read_error
from thinwire.launch.supervise import Attempt, Supervisor
from thinwire.text.output import CommandOutput, one_line

if TYPE_CHECKING:
    from thinwire.launch.store import Endpoint

GRACE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"  # as torchrun reads it
CRASHES = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)
INVALID = 2  # the exit code of a request that no restart can satisfy
LINGER_S = 5.0  # two looks at the heartbeats, and a little


@dataclass(frozen=True)
class Workers:
    """The ranks of this machine.

    Args:
        command: what each rank runs.
        count: ranks on this machine.
        machines: machines of the run; each has `count` ranks.
        machine: the number of this machine, from 0.
        restarts: how often ranks are started again after a failure.
        threads: threads of a rank, unless `OMP_NUM_THREADS` is set.
    """

    command: Sequence[str]
    count: int
    machines: int = 1
    machine: int = 0
    restarts: int = 0
    threads: int = 1

    @property
    def first_rank(self) -> int:
        """The rank of this machine's first worker."""
        return self.machine * self.count


def run_workers(workers: Workers, master: tuple[str, int], output: CommandOutput) -> int:
    """Run the ranks of this machine to their end and return the exit code.

    Args:
        workers: the ranks.
        master: host and port of machine 0; not used for a single machine.
        output: prints warnings and the last error.

    Raises:
        ConfigError: the store cannot be served, or its address does not resolve.
    """
    from thinwire.launch.store import LOOPBACK, Endpoint, serve

    # 1. Serve the store on machine 0; elsewhere refuse a wrong address before anything is loaded.
    endpoint = (
        Endpoint(LOOPBACK, 0, "the store", several=False)
        if workers.machines == 1
        else Endpoint(*master, "--master", several=True)
    )
    if workers.machine == 0:
        # A reference must live until the last attempt has ended.
        store = serve(endpoint, output.note)
        endpoint = replace(endpoint, port=store.port)
    else:
        endpoint.addresses()
    # 2. Attempt after attempt, until all ranks succeed or no restart is left.
    supervisor = Supervisor(list(workers.command), float(env.text(GRACE, "60")))
    with tempfile.TemporaryDirectory(prefix="thinwire-") as folder, supervisor.listening():
        shared = _shared_variables(workers, endpoint)
        for restart in range(workers.restarts + 1):
            files = [Path(folder, f"{restart}-{local}") for local in range(workers.count)]
            attempt = supervisor.attempt(
                [
                    shared | _own_variables(workers, local, restart, file)
                    for local, file in enumerate(files)
                ]
            )
            if attempt.signal:
                return _stopped(attempt, output)
            if not any(attempt.codes):
                return 0
            if restart == workers.restarts or INVALID in attempt.codes:
                break
            output.note(
                f"starting this machine's workers again ({restart + 1} of {workers.restarts} times)"
            )
        # 3. Report the failure.
        code = _report(attempt, workers.first_rank, files, output)
    if workers.machines > 1 and workers.machine == 0:
        time.sleep(LINGER_S)  # other machines learn from this store which rank is lost
    return code


def _shared_variables(workers: Workers, endpoint: Endpoint) -> dict[str, str]:
    """Return the environment of every rank: this process's, and the variables that torchrun
    sets."""
    # Later entries win: defaults, then the user's own variables, then what a launcher must set.
    defaults = {"OMP_NUM_THREADS": str(workers.threads), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    return (
        defaults
        | env.copy()
        | {
            LAUNCHER: str(os.getpid()),
            "WORLD_SIZE": str(workers.machines * workers.count),
            "LOCAL_WORLD_SIZE": str(workers.count),
            "GROUP_RANK": str(workers.machine),
            "GROUP_WORLD_SIZE": str(workers.machines),
            "MASTER_ADDR": endpoint.host,
            "MASTER_PORT": str(endpoint.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # no rank serves it
            # "none" with several machines: the id must be the same on all of them
            "TORCHELASTIC_RUN_ID": uuid.uuid4().hex if workers.machines == 1 else "none",
            "TORCHELASTIC_MAX_RESTARTS": str(workers.restarts),
        }
    )


def _own_variables(workers: Workers, local: int, restart: int, file: Path) -> dict[str, str]:
    """Return the environment of one rank, beside what all of them share."""
    return {
        "RANK": str(workers.first_rank + local),
        "LOCAL_RANK": str(local),
        "TORCHELASTIC_RESTART_COUNT": str(restart),
        ERROR_FILE: str(file),
    }


def _stopped(attempt: Attempt, output: CommandOutput) -> int:
    """Return the exit code after a signal: a rank's own if it failed, such as in its last save."""
    if output.as_json:  # the ranks have printed what they saved
        sys.stdout.write(
            json.dumps({"error": f"ended by {signal.Signals(attempt.signal).name}"}) + "\n"
        )
    return max((code for code in attempt.codes if 0 < code < 128), default=128 + attempt.signal)


def _report(attempt: Attempt, base: int, files: Sequence[Path], output: CommandOutput) -> int:
    """Print what no rank has printed about a failed attempt, and return the exit code.

    Ranks that failed first come first. Of the others only those count that failed by themselves,
    and were not merely stopped.
    """
    codes = attempt.codes
    # 1. The ranks in question, those that were killed, and the messages that ranks left.
    order = [
        *attempt.first,
        *(
            local
            for local, code in enumerate(codes)
            if local not in attempt.first and 0 < code < 128
        ),
    ]
    killed = [
        f"rank {base + local} was killed by {signal.Signals(-codes[local]).name}"
        for local in attempt.first
        if -codes[local] in CRASHES
    ]
    errors = [read_error(files[local]) for local in order]
    printed = [text for text, done in errors if done]
    # 2. Print who was killed; else the first message that no rank printed.
    if killed or not printed:
        silent = [
            f"rank {base + local} ended with exit code {codes[local]} and printed nothing"
            for local in order
        ]
        lines = killed or [text for text, _ in errors if text][:1] or silent
        output.note(f"{output.program}: {one_line('; '.join(lines))}")
        printed = printed or lines[len(killed) :]
    if output.as_json:
        sys.stdout.write(json.dumps({"error": one_line("; ".join(killed + printed[:1]))}) + "\n")
    return max((codes[local] for local in attempt.first if codes[local] > 0), default=1)
