"""How parameters are laid out in buckets and fragments."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from thinwire.engine.buckets import FlatBucket, plan
from thinwire.errors import AttachError
from thinwire.models.gpt import GPT, GPTConfig
from thinwire.when import delayed, every, staggered


def nbytes(bucket: FlatBucket) -> int:
    return sum(param.numel() * param.dtype.itemsize for param in bucket.params)


@given(
    sizes=st.lists(st.integers(1, 5000), min_size=2, max_size=40),
    parts=st.integers(2, 6),
    bucket_bytes=st.integers(1, 40_000),
    second=st.integers(0, 3),
)
def test_fragments_are_even(sizes: list[int], parts: int, bucket_bytes: int, second: int) -> None:
    """No fragment has more than another by more than the largest parameter, whatever there is to
    deal."""
    dtypes = [
        torch.bfloat16 if second and i % (second + 1) == 0 else torch.float32
        for i in range(len(sizes))
    ]
    model = nn.ParameterList(
        nn.Parameter(torch.empty(size, dtype=dtype))
        for size, dtype in zip(sizes, dtypes, strict=True)
    )
    when = staggered(parts, every(10))
    if len(sizes) < parts:
        with pytest.raises(AttachError, match=f"wants {parts} fragments"):
            plan(model, bucket_bytes, when, wide=True)
        return
    buckets = plan(model, bucket_bytes, when, wide=True)
    assert sorted(name for bucket in buckets for name in bucket.names) == sorted(
        map(str, range(len(sizes)))
    )
    assert all(len({param.dtype for param in bucket.params}) == 1 for bucket in buckets)
    fragments = [buckets[fragment::parts] for fragment in range(parts)]
    assert all(fragments)
    told = [sum(map(nbytes, fragment)) for fragment in fragments]
    largest = max(param.numel() * param.dtype.itemsize for param in model)
    assert max(told) - min(told) <= largest


def test_layers_are_strided_over_fragments() -> None:
    """A model of the bench: an embedding of an eighth of all, and six layers alike."""
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab=4096, context=64, layers=6, heads=6, width=384))
    buckets = plan(model, 1 << 20, delayed(2, staggered(5, every(10))), wide=True)
    fragments = [
        [name for bucket in buckets[fragment::5] for name in bucket.names] for fragment in range(5)
    ]
    told = [sum(map(nbytes, buckets[fragment::5])) for fragment in range(5)]
    assert max(told) / min(told) < 1.07
    for names in fragments:
        layers = {
            name.split(".")[1]
            for name in names
            if name.startswith("blocks.") and "norm" not in name and "bias" not in name
        }
        assert len(layers) >= (2 if "embed.weight" in names else 4)
