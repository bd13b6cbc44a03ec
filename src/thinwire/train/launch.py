"""`--workers N` starts the ranks of this machine, watches them, and starts them again if asked.

The workers run this very command with `RANK` set, and say what there is to say; the launcher speaks
only where none of them could. It serves the store in which they meet, so that the store outlives
them: on loopback alone where `--nodes` is 1.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from thinwire.drive.interfaces import resolve
from thinwire.errors import ConfigError
from thinwire.say import Say, one_line
from thinwire.train.config import TrainConfig, flags_of
from thinwire.train.memory import must_fit
from thinwire.train.supervise import Attempt, Supervisor

if TYPE_CHECKING:
    from thinwire.train.store import Place

LAUNCHED = "THINWIRE_LAUNCHED"  # the launcher's process, for workers in whose place it speaks JSON
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
GRACE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"  # as torchrun reads it
CRASHES = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)
CANNOT_BE = 2  # the exit code of what no restart will mend
PORT = 29500  # torchrun's
LINGER_S = 5.0  # two looks at the heartbeats, and a little


def launch(config: TrainConfig, say: Say) -> int:
    """Start the ranks and wait for them; the exit code."""
    if config.nodes > 1:
        resolve(
            _master(config)[0], "--master"
        )  # refused before torch is loaded, which takes seconds
    from thinwire.train.folder import default_out
    from thinwire.train.rank import run_rank
    from thinwire.train.spoken import strategy_from

    strategy_from(config.strategy)  # refused here, it is refused once and at once
    config = default_out(config)
    cores = os.cpu_count() or 1
    if config.workers > cores:
        say.note(
            f"warning: {config.workers} workers share {cores} cores: each waits for the others' "
            "turns"
        )
    if config.nodes * config.workers == 1 and not config.restarts:
        return run_rank(config, say)
    threads = max(1, cores // config.workers)
    must_fit(config, threads)
    return _supervised(config, say, threads)


def _supervised(config: TrainConfig, say: Say, threads: int) -> int:
    from thinwire.train.store import LOOPBACK, Place, serve

    place = (
        Place(LOOPBACK, 0, "the store", several=False)
        if config.nodes == 1
        else Place(*_master(config), "--master", several=True)
    )
    if config.node_rank == 0:
        store = serve(place, say.note)  # kept until the last attempt has ended
        place = replace(place, port=store.port)
    else:
        place.addresses()  # refused here, it is refused before anything is loaded
    supervisor = Supervisor(_command(config, say), float(os.environ.get(GRACE, "60")))
    with tempfile.TemporaryDirectory(prefix="thinwire-") as folder, supervisor.listening():
        variables = _variables(config, threads, place)
        for restart in range(config.restarts + 1):
            files = [Path(folder, f"{restart}-{rank}") for rank in range(config.workers)]
            attempt = supervisor.attempt(
                [variables | _own(config, rank, restart, file) for rank, file in enumerate(files)]
            )
            if attempt.signal:
                return _stopped(attempt, say)
            if not any(attempt.codes):
                return 0
            if restart == config.restarts or CANNOT_BE in attempt.codes:
                break
            say.note(
                f"starting this machine's workers again ({restart + 1} of {config.restarts} times)"
            )
        code = _explain(attempt, config.node_rank * config.workers, files, say)
    if config.nodes > 1 and config.node_rank == 0:
        time.sleep(LINGER_S)  # others find out by this store who is lost
    return code


def _master(config: TrainConfig) -> tuple[str, int]:
    """The host and the port of `--master`."""
    if config.node_rank >= config.nodes:
        raise ConfigError(
            f"--node-rank {config.node_rank} of --nodes {config.nodes}: machines are 0 to "
            f"{config.nodes - 1}"
        )
    found = re.fullmatch(r"\[([^\]]+)\](?::(\d+))?|([^:\s]+)(?::(\d+))?", config.master)
    host, port = (found[1] or found[3], int(found[2] or found[4] or PORT)) if found else ("", 0)
    if not host or not 0 < port < 1 << 16:
        raise ConfigError(
            (
                f"--nodes {config.nodes} needs --master HOST:PORT, an address of machine 0 that "
                f"all reach, such as 10.0.0.1:{PORT}"
            )
            + (f"; got {config.master!r}" if config.master else "")
        )
    return host, port


def _command(config: TrainConfig, say: Say) -> list[str]:
    return [
        sys.executable,
        "-m",
        "thinwire",
        "train",
        *(["--json"] if say.as_json else []),
        *flags_of(config),
    ]


def _variables(config: TrainConfig, threads: int, place: Place) -> dict[str, str]:
    """The environment of every rank: this process's, and what torchrun would set."""
    free = {
        "OMP_NUM_THREADS": str(threads),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }  # unless the user has set them
    return (
        free
        | dict(os.environ)
        | {
            LAUNCHED: str(os.getpid()),
            "WORLD_SIZE": str(config.nodes * config.workers),
            "LOCAL_WORLD_SIZE": str(config.workers),
            "GROUP_RANK": str(config.node_rank),
            "GROUP_WORLD_SIZE": str(config.nodes),
            "MASTER_ADDR": place.host,
            "MASTER_PORT": str(place.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # no rank serves it
            "TORCHELASTIC_RUN_ID": uuid.uuid4().hex
            if config.nodes == 1
            else "none",  # the same on every machine
            "TORCHELASTIC_MAX_RESTARTS": str(config.restarts),
        }
    )


def _own(config: TrainConfig, local: int, restart: int, file: Path) -> dict[str, str]:
    """The environment of one rank."""
    rank = str(config.node_rank * config.workers + local)
    return {
        "RANK": rank,
        "LOCAL_RANK": str(local),
        "TORCHELASTIC_RESTART_COUNT": str(restart),
        ERROR_FILE: str(file),
    }


def _stopped(attempt: Attempt, say: Say) -> int:
    """The exit code after a signal: a rank's own where it failed, as when a last save did not
    succeed."""
    if say.as_json:  # the workers have said what they saved
        sys.stdout.write(
            json.dumps({"error": f"ended by {signal.Signals(attempt.signal).name}"}) + "\n"
        )
    return max((code for code in attempt.codes if 0 < code < 128), default=128 + attempt.signal)


def _explain(attempt: Attempt, base: int, files: Sequence[Path], say: Say) -> int:
    """Say what the workers' ends come to: their own words, and who was killed. Return the exit
    code.

    Those that failed first speak first; of the others only who failed by itself, and was not merely
    stopped.
    """
    codes = attempt.codes
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
    told = [_told(files[local]) for local in order]
    words = [text for text, spoken in told if spoken]
    if killed or not words:
        silent = [
            f"rank {base + local} ended with exit code {codes[local]} and said nothing"
            for local in order
        ]
        encoded = killed or [text for text, _ in told if text][:1] or silent
        say.note(f"{say.program}: {one_line('; '.join(encoded))}")
        words = words or encoded[len(killed) :]
    if say.as_json:
        sys.stdout.write(json.dumps({"error": one_line("; ".join(killed + words[:1]))}) + "\n")
    return max((codes[local] for local in attempt.first if codes[local] > 0), default=1)


def _told(file: Path) -> tuple[str, bool]:
    """What a worker wrote into its error file, and whether it has said so itself."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))["message"]
        return str(told["message"]), bool(told["spoken"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", False


def leave_word(message: str, spoken: bool) -> None:
    """A worker's last words, where its launcher looks for them."""
    path = os.environ.get(ERROR_FILE)
    if path:
        told = {
            "message": one_line(message),
            "spoken": spoken,
            "extraInfo": {"timestamp": int(time.time())},
        }
        Path(path).write_text(json.dumps({"message": told}), encoding="utf-8")


def end_with_parent() -> None:
    """Let the kernel kill this process when its launcher is gone, so that no worker is left behind
    (Linux)."""
    if sys.platform != "linux" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    pr_set_pdeathsig = 1
    if ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0):
        raise ConfigError(
            "the kernel refused to tie this worker to its launcher: "
            f"{os.strerror(ctypes.get_errno())}"
        )
    if os.environ.get(LAUNCHED, str(os.getppid())) != str(os.getppid()):  # it was gone before
        os._exit(1)
