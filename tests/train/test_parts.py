"""A checkpoint folder: what was written is read, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from thinwire.train.parts import (
    MANIFEST,
    DamagedError,
    Manifest,
    Part,
    read_manifest,
    read_part,
    write_manifest,
    write_part,
)


def written(folder: Path) -> tuple[Part, dict[str, torch.Tensor]]:
    whole = torch.arange(12.0)
    tensors = {"a": whole[:6], "b": whole[6:].view(2, 3), "empty": torch.zeros(0)}
    part = write_part(folder, 0, tensors)
    write_manifest(folder, Manifest(7, "run", "ant", 1, (part,)))
    return part, tensors


def test_views_of_one_tensor_are_written_and_read(tmp_path: Path) -> None:
    part, tensors = written(tmp_path)
    read = read_part(tmp_path, part)
    assert {name: tensor.tolist() for name, tensor in read.items()} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }
    assert read_manifest(tmp_path) == Manifest(7, "run", "ant", 1, (part,))


@pytest.mark.parametrize("victim", ["rank-0.safetensors", MANIFEST])
def test_a_changed_byte_anywhere_is_found(tmp_path: Path, victim: str) -> None:
    part, _ = written(tmp_path)
    raw = (tmp_path / victim).read_bytes()
    for at in range(0, len(raw), 7):
        (tmp_path / victim).write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        with pytest.raises(DamagedError):
            read_manifest(tmp_path) if victim == MANIFEST else read_part(tmp_path, part)


@pytest.mark.parametrize("facts", [None, {}, {"rank": -1}, {"rank": 0, "length": "9"}])
def test_facts_of_another_rank_are_checked(facts: object) -> None:
    with pytest.raises(ValueError, match=r"is no|is none"):
        Part.parse(facts)
