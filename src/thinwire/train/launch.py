"""`--workers N` on this machine: torch's elastic agent starts the ranks, watches them, and starts them again if asked.

The workers run this very command with `RANK` set, and say what there is to say; the launcher speaks only where none of them could.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from thinwire.errors import ConfigError
from thinwire.say import Say, one_line
from thinwire.train.config import TrainConfig, flags_of

LAUNCHED = "THINWIRE_LAUNCHED"  # the launcher's process, for workers in whose place it speaks JSON


def launch(config: TrainConfig, say: Say) -> int:
    """Start the ranks and wait for them; the exit code."""
    from thinwire.train.folder import default_out
    from thinwire.train.rank import run_rank
    from thinwire.train.spoken import strategy_from

    strategy_from(config.strategy)  # refused here, it is refused once and at once
    config = default_out(config)
    cores = os.cpu_count() or 1
    if config.workers > cores:
        say.note(f"warning: {config.workers} workers share {cores} cores: each waits for the others' turns")
    if config.workers == 1 and not config.restarts:
        return run_rank(config, say)
    return _elastic(config, say, max(1, cores // config.workers))


def _elastic(config: TrainConfig, say: Say, threads: int) -> int:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # we say it ourselves
    logging.getLogger("torch.distributed.launcher").setLevel(logging.CRITICAL)
    os.environ[LAUNCHED] = str(os.getpid())
    for name, value in {"OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": "lo", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "60"}.items():
        os.environ.setdefault(name, value)
    agent = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=config.workers,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any port that is free
        max_restarts=config.restarts,
        local_addr="127.0.0.1",
    )
    command = ["-m", "thinwire", "train", *(["--json"] if say.as_json else []), *flags_of(config)]
    logs = tempfile.TemporaryDirectory(prefix="thinwire-")  # the workers' error files
    agent.logs_specs = DefaultLogsSpecs(log_dir=logs.name)
    try:
        elastic_launch(agent, sys.executable)(*command)
    except ChildFailedError as error:
        return _explain(error.failures, say)
    except SignalException as error:
        if say.as_json:  # the workers have said what they saved
            sys.stdout.write(json.dumps({"error": f"ended by {error.sigval.name}"}) + "\n")
        return 128 + error.sigval
    finally:
        logs.cleanup()
    return 0


def _explain(failures: dict[int, Any], say: Say) -> int:
    """What the workers' ends come to: their own words, and who was killed."""
    killed = [
        f"rank {rank} was killed by {signal.Signals(-failure.exitcode).name}"
        for rank, failure in sorted(failures.items())
        if failure.exitcode in (-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS)
    ]
    told = [_told(failure) for failure in failures.values()]
    words = [text for text, spoken in told if spoken]
    if killed or not words:
        silent = [f"rank {rank} ended with exit code {failure.exitcode} and said nothing" for rank, failure in sorted(failures.items())]
        unsaid = killed or [text for text, _ in told if text][:1] or silent
        say.note(f"{say.program}: {one_line('; '.join(unsaid))}")
        words = words or unsaid[len(killed) :]
    if say.as_json:
        sys.stdout.write(json.dumps({"error": one_line("; ".join(killed + words[:1]))}) + "\n")
    codes = [failure.exitcode for failure in failures.values() if failure.exitcode > 0]
    return max(codes, default=1)


def _told(failure: Any) -> tuple[str, bool]:
    """What a worker wrote into its error file, and whether it has said so itself."""
    try:
        told = json.loads(Path(failure.error_file).read_text(encoding="utf-8"))["message"]
        return str(told["message"]), bool(told["spoken"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", False


def leave_word(message: str, spoken: bool) -> None:
    """A worker's last words, where its launcher looks for them."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        told = {"message": one_line(message), "spoken": spoken, "extraInfo": {"timestamp": int(time.time())}}
        Path(path).write_text(json.dumps({"message": told}), encoding="utf-8")


def end_with_parent() -> None:
    """Let the kernel kill this process when its launcher is gone, so that no worker is left behind (Linux)."""
    if sys.platform != "linux" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    pr_set_pdeathsig = 1
    if ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0):
        raise ConfigError(f"the kernel refused to tie this worker to its launcher: {os.strerror(ctypes.get_errno())}")
    if os.environ.get(LAUNCHED, str(os.getppid())) != str(os.getppid()):  # it was gone before
        os._exit(1)
