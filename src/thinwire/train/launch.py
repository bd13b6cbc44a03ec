"""Check the settings of `thinwire train --workers N`, then start this machine's ranks.

The workers run the same command again, with `RANK` set.
"""

from __future__ import annotations

import os
import re
import sys

from thinwire.drive.interfaces import resolve
from thinwire.errors import ConfigError
from thinwire.launch.elastic import Workers, run_workers
from thinwire.text.output import CommandOutput
from thinwire.train.config import TrainConfig, flags_of
from thinwire.train.memory import must_fit
from thinwire.train.parallel import advice, shards_of

PORT = 29500  # torchrun's


def launch(config: TrainConfig, output: CommandOutput) -> int:
    """Start the ranks of this machine, wait for them and return the exit code.

    Raises:
        ThinwireError: the settings are wrong, or the machine has too little memory for the ranks.
    """
    # 1. Refuse wrong settings here, once, before torch is loaded or a rank is started.
    master = _master(config) if config.nodes > 1 else ("", 0)
    if config.nodes > 1:
        resolve(master[0], "--master")
    from thinwire.train.folder import default_out
    from thinwire.train.rank import run_rank
    from thinwire.train.strategy_argument import strategy_from

    strategy_from(config.strategy)
    world = config.nodes * config.workers
    if note := advice(shards_of(config, world, config.workers), world):
        output.note(note)
    config = default_out(config)
    cores = os.cpu_count() or 1
    if config.workers > cores:
        output.note(
            f"warning: {config.workers} workers share {cores} cores: each waits for the others' "
            "turns"
        )
    # 2. A single rank needs no launcher.
    if config.nodes * config.workers == 1 and not config.restarts:
        return run_rank(config, output)
    # 3. Start the ranks.
    threads = max(1, cores // config.workers)
    must_fit(config, threads)
    workers = Workers(
        _command(config, output),
        config.workers,
        config.nodes,
        config.node_rank,
        config.restarts,
        threads,
    )
    return run_workers(workers, master, output)


def _master(config: TrainConfig) -> tuple[str, int]:
    """Return the host and the port of `--master`."""
    # IPv6 stands in brackets; the port is optional in both forms.
    if config.node_rank >= config.nodes:
        raise ConfigError(
            f"--node-rank {config.node_rank} of --nodes {config.nodes}: machines are 0 to "
            f"{config.nodes - 1}"
        )
    match = re.fullmatch(r"\[([^\]]+)\](?::(\d+))?|([^:\s]+)(?::(\d+))?", config.master)
    host, port = (match[1] or match[3], int(match[2] or match[4] or PORT)) if match else ("", 0)
    if not host or not 0 < port < 1 << 16:
        raise ConfigError(
            f"--nodes {config.nodes} needs --master HOST:PORT, an address of machine 0 that all "
            f"reach, such as 10.0.0.1:{PORT}"
            + (f"; got {config.master!r}" if config.master else "")
        )
    return host, port


def _command(config: TrainConfig, output: CommandOutput) -> list[str]:
    json_flag = ["--json"] if output.as_json else []
    return [sys.executable, "-m", "thinwire", "train", *json_flag, *flags_of(config)]
