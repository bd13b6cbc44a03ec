"""Check which training frameworks are installed, in which versions, and what of them is
supported."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator

from thinwire.planner.machine.finding import Finding

TRIED: dict[str, tuple[str, str]] = {
    "torch": (
        "2.13",
        "inside DDP by ddp_hook; replicas that FSDP2 shards by attach; what FSDP2 sends by "
        "thin_collectives",
    ),
    "transformers": ("5.24", "its Trainer by a callback, on DDP"),
    "accelerate": ("1.15", "a prepared model by ddp_hook, on DDP"),
    "peft": ("0.21", "its adapters by the callback of transformers' Trainer"),
    "trl": ("1.16", "SFTTrainer and DPOTrainer by the callback of transformers' Trainer"),
    "lightning": ("2.6", "its Trainer by a callback, on DDP"),
    "pytorch-lightning": ("2.6", "its Trainer by a callback, on DDP"),
    "torchtitan": ("0.3", "its trainer over dp_replicate, by thinwire.adapters.torchtitan"),
    "ray": ("2.60", "Ray Train by attach and checkpoint on its workers, on DDP"),
}
"""By package: the version that adapters were tried with, and what they support."""
REFUSED: dict[str, str] = {
    "deepspeed": "refused: it averages by itself; take DDP",
    "horovod": "refused: it averages by itself; take DDP",
    "torchft": "not supported: `thinwire.join` survives lost ranks",
}
"""By package: why nothing of Thinwire works inside it."""


def frameworks() -> Iterator[Finding]:
    """Name the frameworks that are here; those that are not are no trouble."""
    for name, (tried, supported) in TRIED.items():
        version = installed(name)
        if version is None:
            continue
        if version.split("+")[0].startswith(f"{tried}."):
            yield Finding("ok", f"inside {name}", f"{version}: {supported}")
        else:
            yield Finding(
                "note",
                f"inside {name}",
                f"{version}: {supported}; tried with {tried} alone",
                "compare a few steps with the framework's own before a long run",
            )
    for name, why in REFUSED.items():
        if (version := installed(name)) is not None:
            yield Finding(
                "note", f"inside {name}", f"{version}: {why}", "nothing, where it is not used"
            )


def installed(name: str) -> str | None:
    """Return the version of a package, or `None` where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
