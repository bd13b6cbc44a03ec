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


def filled(sizes: list[int], dtype: torch.dtype = torch.float32) -> FlatBucket:
    """A bucket of vectors that have gradients, with a buffer that is being filled."""
    draw = torch.Generator().manual_seed(0)
    model = nn.ParameterList(nn.Parameter(torch.zeros(size, dtype=dtype)) for size in sizes)
    for param in model:
        param.grad = torch.randn(param.shape, generator=draw).to(dtype)
    (bucket,) = plan(model, 1 << 30, every(1), wide=False)
    bucket.make_buffers(1)
    bucket.turn()
    return bucket


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 0, 3, 1, 4, 2]])
@pytest.mark.parametrize("absent", [None, 3])
def test_small_gradients_are_moved_as_each_by_itself(
    dtype: torch.dtype, order: list[int], absent: int | None
) -> None:
    bucket = filled([3, 70_000, 5, 4, 1, 9], dtype)
    if absent is not None:
        bucket.params[absent].grad = None
    wanted = [
        torch.zeros(param.shape, dtype=dtype) if param.grad is None else param.grad * 0.3
        for param in bucket.params
    ]
    for i in order:
        bucket.take(i, 0.3)
    assert not bucket.missing
    assert torch.equal(bucket.grads(), torch.cat(wanted))
    assert bucket.first_nonfinite(bucket.grads()) == -1


def test_a_gradient_that_was_moved_takes_no_memory_of_its_own() -> None:
    bucket = filled([3, 70_000, 5])
    for i in range(3):
        bucket.take(i, 1.0)
    begin, end = bucket.grads().data_ptr(), bucket.grads().nbytes
    for param in bucket.params:
        assert param.grad is not None
        assert begin <= param.grad.data_ptr() < begin + end


def test_a_gradient_that_is_not_finite_is_found_among_others() -> None:
    bucket = filled([3, 4, 5])
    grad = bucket.params[1].grad
    assert grad is not None
    grad[2] = torch.inf
    for i in range(3):
        bucket.take(i, 1.0)
    first = int(bucket.first_nonfinite(bucket.grads()))
    assert first == bucket.spec.parts[1].begin + 2


def test_small_gradients_wait_for_the_last_one() -> None:
    """Few calls for many tensors: nothing is moved before there is enough, or the bucket is
    full."""
    bucket = filled([8] * 4)
    for i in range(3):
        bucket.take(i, 1.0)
    assert not bucket.grads().any()
    bucket.take(3, 1.0)
    assert bucket.grads().all()
