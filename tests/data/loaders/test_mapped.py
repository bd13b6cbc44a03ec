"""Shards in a row are one tensor."""

from __future__ import annotations

import gc
import mmap
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thinwire.data.loaders.mapped import in_shards, mapped

PAGE = mmap.PAGESIZE // 4  # in tokens


def written(folder: Path, shards: list[int]) -> tuple[list[Path], torch.Tensor]:
    ids = torch.arange(sum(shards), dtype=torch.int32)
    paths = []
    for number, part in enumerate(ids.split(shards)):
        paths.append(folder / f"{number}.bin")
        paths[-1].write_bytes(part.numpy().tobytes())
    return paths, ids


@pytest.mark.parametrize(
    "shards", [[7], [PAGE], [PAGE, 3], [2 * PAGE, PAGE, PAGE - 1], [PAGE, 0], [PAGE, 0, 5], [0]]
)
def test_shards_side_by_side_are_one_tensor(tmp_path: Path, shards: list[int]) -> None:
    paths, ids = written(tmp_path, shards)
    found = mapped(paths, len(ids))
    assert found.dtype == torch.int32
    assert found.equal(ids)
    if len(ids):
        found[len(ids) // 2] = -1
        assert mapped(paths, len(ids)).equal(ids), "a write stays in this tensor"


def test_the_addresses_are_given_back_with_the_tensor(tmp_path: Path) -> None:
    def mappings() -> int:
        return sum(
            str(tmp_path) in line for line in Path("/proc/self/maps").read_text().splitlines()
        )

    paths, ids = written(tmp_path, [PAGE, PAGE, 5])
    found = mapped(paths, len(ids))
    view = found[PAGE - 1 : PAGE + 1]
    del found
    gc.collect()
    assert mappings() == 3
    assert view.tolist() == [PAGE - 1, PAGE]
    del view
    gc.collect()
    assert mappings() == 0


def test_what_would_leave_a_gap_or_reach_beyond_is_refused(tmp_path: Path) -> None:
    paths, ids = written(tmp_path, [5, PAGE])
    with pytest.raises(ValueError, match="cannot be mapped"):
        mapped(paths, len(ids))
    with pytest.raises(ValueError, match="cannot be mapped"):
        mapped(paths[1:], PAGE + 1)


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 30), max_size=8), room=st.integers(1, 12))
def test_pieces_fill_shards_in_order(sizes: list[int], room: int) -> None:
    whole = np.arange(sum(sizes), dtype=np.int32)
    shards = [
        np.concatenate(list(shard)).tolist()
        for shard in in_shards(np.split(whole, np.cumsum(sizes)[:-1]) if sizes else [], room)
    ]
    assert list(chain(*shards)) == whole.tolist()
    assert [len(shard) for shard in shards] == [room] * (len(whole) // room) + [
        len(whole) % room
    ] * (len(whole) % room > 0)
