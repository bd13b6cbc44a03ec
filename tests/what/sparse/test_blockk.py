import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thinwire.core import Spec, State
from thinwire.errors import PayloadError, StrategyError
from thinwire.testing import contexts
from thinwire.what import blockk, cast, topk
from thinwire.what.sparse import _indices

SEAT = contexts()[1]


def span(n: int) -> Spec:
    return Spec((), 0, n, torch.float32)


def through(codec: blockk, x: Tensor) -> Tensor:
    return codec.decode(
        codec.encode(x, span(x.numel()), State(), SEAT), span(x.numel()), State(), SEAT, 1
    )


@given(
    seed=st.integers(0, 2**32),
    n=st.integers(0, 200),
    k=st.integers(1, 20),
    block=st.integers(1, 30),
)
def test_it_keeps_the_blocks_of_largest_norm_whole(seed: int, n: int, k: int, block: int) -> None:
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    sent = through(blockk(k, block), x)
    runs, heard = x.split(block), sent.split(block)
    kept = [bool(torch.equal(run, own)) for run, own in zip(runs, heard, strict=True)] if n else []
    assert sum(kept) == min(k, len(kept))
    assert all(keep or not own.any() for keep, own in zip(kept, heard, strict=False))
    smallest = min((run.norm() for run, keep in zip(runs, kept, strict=False) if keep), default=0.0)
    assert all(
        run.norm() <= smallest * (1 + 1e-5)
        for run, keep in zip(runs, kept, strict=False)
        if not keep
    )
    assert (x - sent).square().sum() <= (
        1 - min(k, len(kept)) / max(len(kept), 1)
    ) * x.square().sum() + 1e-5


@given(n=st.integers(0, 500), k=st.integers(1, 20), block=st.integers(1, 30))
def test_bytes_are_whole_blocks_and_their_places(n: int, k: int, block: int) -> None:
    blocks = math.ceil(n / block)
    kept = min(k, blocks)
    assert blockk(k, block).nbytes(span(n)) == 4 * kept * block + _indices.smallest_nbytes(
        kept, blocks
    )
    assert (blockk(k, block) >> cast()).nbytes(
        span(n)
    ) == 2 * kept * block + _indices.smallest_nbytes(kept, blocks)


def test_of_one_value_a_block_it_is_topk() -> None:
    x = torch.randn(1000)
    assert torch.equal(
        through(blockk(70, block=1), x),
        topk(70).decode(
            topk(70).encode(x, span(1000), State(), SEAT), span(1000), State(), SEAT, 1
        ),
    )


@pytest.mark.parametrize("scale", [1e-42, 1.0, 1e35])
def test_norms_neither_vanish_nor_overflow(scale: float) -> None:
    x = torch.tensor([3.0, 3.0, 4.0, 0.0, 1.0]) * scale
    assert through(blockk(1, block=2), x).nonzero().view(-1).tolist() == [0, 1]


def test_a_block_with_a_nan_counts_as_the_largest() -> None:
    x = torch.arange(8.0)
    x[1] = float("nan")
    assert through(blockk(1, block=2), x).isnan().tolist() == [False, True] + [False] * 6
    assert through(blockk(1, block=2), x)[0] == 0.0


def test_a_corrupted_place_is_refused() -> None:
    codec = blockk(3, block=4)
    payload = codec.encode(torch.randn(40), span(40), State(), SEAT)
    payload[: codec.side_nbytes(span(40), 12)] = 255
    with pytest.raises(PayloadError, match="corrupted"):
        codec.decode(payload, span(40), State(), SEAT, 1)


def test_all_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(StrategyError) as caught:
        blockk(1.5, block=0)
    assert len(caught.value.reasons) == 2
