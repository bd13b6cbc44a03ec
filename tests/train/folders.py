"""Kept checkpoints of small runs, and ways to damage them."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from thinwire.engine.packed_json import pack_json, unpack_json


def newest(out: Path) -> Path:
    return max(out.glob("checkpoints/host-*/step-*"))


def flip(path: Path, at: float = 0.9) -> None:
    """One bit."""
    damaged = bytearray(path.read_bytes())
    damaged[int(at * len(damaged))] ^= 4
    path.write_bytes(damaged)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def as_dcp(out: Path) -> None:
    """Make the newest checkpoint what Thinwire 0.1.0 wrote before it had a manifest."""
    folder = newest(out)
    state = load_file(folder / "rank-0.safetensors")
    state["job"] = pack_json(unpack_json(state["job"]) | {"format": 1})
    shutil.rmtree(folder)
    dcp.save(state, checkpoint_id=folder, no_dist=True)
