"""Ray Train on this machine alone: its workers run what a test has, and none is left afterwards."""

from __future__ import annotations

import os
import pickle
import secrets
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.members import ROOT
from tests.ranks import run_ranks


@dataclass(frozen=True)
class Fitted:
    """What a run in Ray Train has left."""

    results: list[Any]
    """What each worker returned, by rank."""
    metrics: dict[str, Any]
    """Those of the last report with a checkpoint."""
    checkpoint: str | None
    """The folder of that checkpoint."""


def variables() -> dict[str, str]:
    """Variables with which Ray calls nobody and leaves nothing in the home folder."""
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),  # else it writes one into the home folder
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
        # Else workers have niceness 15: beside other tests they get no processor, and time out.
        "RAY_worker_niceness": "0",
    }


def fit(
    folder: Path,
    work: Callable[..., Any],
    *args: Any,
    world: int = 2,
    failures: int = 0,
    timeout: float = 400,
) -> Fitted:
    """`work(*args)` on each worker of Ray Train, under a driver that is a process of its own.

    Args:
        folder: where Ray keeps checkpoints.
        failures: how often the workers may start again.
    """
    return run_ranks(1, _drive, folder, work, args, world, failures, timeout=timeout)[0]  # type: ignore[no-any-return]


def _drive(
    rank: int,
    folder: Path,
    work: Callable[..., Any],
    args: tuple[Any, ...],
    world: int,
    failures: int,
) -> Fitted:
    os.environ |= variables()
    warnings.simplefilter("ignore")  # of Ray's own
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    with tempfile.TemporaryDirectory(prefix="ray-") as session:  # a socket's path has 107 bytes
        ray.init(
            address="local",
            num_cpus=world + 1,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=80 << 20,
            _temp_dir=session,
        )
        try:
            trainer = TorchTrainer(
                _worker,
                train_loop_config={"work": work, "args": args, "folder": folder},
                scaling_config=ray.train.ScalingConfig(num_workers=world),
                run_config=ray.train.RunConfig(
                    name="run",
                    storage_path=str(folder),
                    failure_config=ray.train.FailureConfig(max_failures=failures),
                ),
            )
            result = trainer.fit()
        finally:
            ray.shutdown()
        _all_gone(session)
    return Fitted(
        [pickle.loads((folder / f"{each}.pickle").read_bytes()) for each in range(world)],
        result.metrics or {},
        None if result.checkpoint is None else result.checkpoint.path,
    )


def _worker(config: dict[str, Any]) -> None:
    import ray.train

    result = config["work"](*config["args"])
    path = config["folder"] / f"{ray.train.get_context().get_world_rank()}.pickle"
    path.write_bytes(pickle.dumps(result))


def _all_gone(session: str) -> None:
    """Wait until no process of the session is there any more."""
    deadline = time.monotonic() + 20
    while left := _of_session(session):
        assert time.monotonic() < deadline, f"processes of Ray are left: {left}"
        time.sleep(0.1)


def _of_session(session: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            told = (path / "cmdline").read_bytes() + (path / "environ").read_bytes()
        except OSError:
            continue  # it has ended, or is another user's
        if session.encode() in told and int(path.name) != os.getpid():
            found.append(path.name)
    return found
