"""Decide how ranks share out the model: each holds all of it, or several hold a replica together.

`--parallel ddp` is the first. With `--parallel fsdp`, `--shards` ranks in a row hold one replica
together (FSDP2), and the strategy joins the replicas. Nothing here loads torch.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from thinwire.errors import ConfigError
from thinwire.train.config import TrainConfig


def shards_of(config: TrainConfig, world: int, local_world: int) -> int:
    """Return how many ranks hold a replica together; 0: each rank holds its own.

    Args:
        config: the settings.
        world: ranks on all machines.
        local_world: ranks on this machine, which are a replica unless `--shards` says otherwise.

    Raises:
        ConfigError: so many ranks are not replicas of so many shards.

    Example:
        >>> shards_of(TrainConfig(parallel="fsdp", shards=2), world=4, local_world=4)
        2
        >>> shards_of(TrainConfig(parallel="fsdp"), world=8, local_world=4)
        4
    """
    if config.parallel != "fsdp":
        if config.shards:
            raise ConfigError(
                f"--shards {config.shards}: with --parallel ddp each rank holds the whole model; "
                "add --parallel fsdp, or leave --shards out"
            )
        return 0
    if world == 1:
        raise ConfigError(
            "--parallel fsdp: a single rank has nobody to share the model with; start more ranks "
            "(--workers 2), or leave it out"
        )
    shards = config.shards or local_world
    if world % shards:
        fit = [count for count in range(1, world + 1) if world % count == 0]
        raise ConfigError(
            f"--shards {shards}: {world} ranks are not whole replicas of {shards} ranks each; "
            f"take one of {', '.join(map(str, fit))}"
        )
    return shards


def advice(shards: int, world: int) -> str:
    """Say what a user may not expect of these numbers, or nothing.

    Example:
        >>> advice(shards=2, world=4)
        ''
    """
    if shards != world:
        return ""
    return (
        f"all {world} ranks hold one replica together, so the strategy has nobody to send to; "
        "--shards N makes replicas of N ranks each"
    )


def chosen_settings(config: TrainConfig) -> dict[str, Any]:
    """Return all settings by name; of how the model is shared out only what is not the default."""
    values = dataclasses.asdict(config)
    if config.parallel == "ddp":
        del values["parallel"], values["shards"]
    return values
