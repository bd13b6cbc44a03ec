"""Permutations that are computed: every number comes once, whatever the size and the key."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thinwire.data.loaders.permutation import mixed, permuted, permuted_each


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 600), key=st.text(max_size=5))
def test_every_number_comes_once(size: int, key: str) -> None:
    numbers = torch.arange(size)
    assert permuted(numbers, size, key).sort().values.equal(numbers)


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), key=st.text(max_size=5))
def test_every_range_has_a_permutation_of_its_own(sizes: list[int], key: str) -> None:
    numbers = torch.cat([torch.arange(size) for size in sizes])
    which = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    out = permuted_each(numbers, torch.tensor(sizes)[which], which, key)
    for shard, size in enumerate(sizes):
        assert out[which == shard].sort().values.equal(torch.arange(size))


def test_another_key_gives_another_permutation() -> None:
    numbers = torch.arange(1000)
    one, two = permuted(numbers, 1000, "one"), permuted(numbers, 1000, "two")
    assert (one == two).float().mean() < 0.02  # 1 of 1000 is expected
    assert (one == numbers).float().mean() < 0.02


@pytest.mark.parametrize("shape", [(0,), (2, 3), (4, 1, 2)])
def test_shapes_survive(shape: tuple[int, ...]) -> None:
    assert permuted(torch.zeros(shape, dtype=torch.int64), 7, "key").shape == shape


def test_the_hash_is_frozen() -> None:
    """Orders of saved runs depend on it."""
    assert mixed(torch.tensor([1, 2, 3]).numpy()).tolist() == [2261973619, 229111015, 3983417082]
