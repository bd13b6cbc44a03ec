import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thinwire.core import Spec, State
from thinwire.errors import PayloadError, StrategyError
from thinwire.testing import contexts
from thinwire.what import topk

SEAT = contexts()[1]


def span(n: int) -> Spec:
    return Spec((), 0, n, torch.float32)


def through(codec: topk, x: Tensor) -> Tensor:
    return codec.decode(
        codec.encode(x, span(x.numel()), State(), SEAT), span(x.numel()), State(), SEAT, 1
    )


@given(
    seed=st.integers(0, 2**32), n=st.integers(0, 100), k=st.integers(1, 20), per=st.integers(0, 30)
)
def test_it_keeps_the_largest_of_each_chunk_exactly(seed: int, n: int, k: int, per: int) -> None:
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    codec = topk(min(k, per) if per else k, per)
    expected = torch.zeros(n)
    for low in range(0, n, per or max(n, 1)):
        chunk = x[low : low + per] if per else x
        for place in sorted(range(chunk.numel()), key=lambda i: -abs(float(chunk[i])))[
            : int(codec.k)
        ]:
            expected[low + place] = chunk[place]
    assert torch.equal(through(codec, x), expected)


@given(st.integers(0, 2**32))
def test_of_all_k_sparse_vectors_it_is_the_nearest(seed: int) -> None:
    x = torch.randn(200, generator=torch.Generator().manual_seed(seed))
    assert (through(topk(20), x) - x).square().sum() <= (1 - 20 / 200) * x.square().sum()


def test_a_share_is_rounded_up_and_not_by_a_rounding_error() -> None:
    assert [topk(share).core_numel(span(100)) for share in (0.07, 0.071, 0.29, 1.0, 0.0001)] == [
        7,
        8,
        29,
        100,
        1,
    ]
    assert topk(0.5).core_numel(span(0)) == 0
    assert topk(0.5, per=3).core_numel(span(7)) == 2 + 2 + 1


@pytest.mark.parametrize(
    ("codec", "n", "indices"),
    [
        (topk(64, per=4096), 3 * 4096, 192),
        (topk(64, per=4096), 4096 + 100, 64 + 13),
        (topk(2048, per=4096), 4096, 512),
        (topk(1), 4096, 2),
    ],
)
def test_places_take_the_fewest_bytes(codec: topk, n: int, indices: int) -> None:
    assert codec.nbytes(span(n)) == indices + 4 * codec.core_numel(span(n))


def test_nan_counts_as_the_largest() -> None:
    x = torch.arange(8.0)
    x[2] = float("nan")
    assert through(topk(2), x).isnan().nonzero().tolist() == [[2]]


@pytest.mark.parametrize(
    ("codec", "n"), [(topk(3), 10), (topk(3, per=10), 40), (topk(2, per=8), 19)]
)
def test_a_place_beyond_its_chunk_is_refused(codec: topk, n: int) -> None:
    payload = codec.encode(torch.randn(n), span(n), State(), SEAT)
    payload[: codec.side_nbytes(span(n), codec.core_numel(span(n)))] = 255
    with pytest.raises(PayloadError, match="corrupted"):
        codec.decode(payload, span(n), State(), SEAT, 1)


@pytest.mark.parametrize("k", [0, -1, 1.5, 0.0, float("nan")])
def test_a_k_that_is_no_count_and_no_share_is_refused(k: float) -> None:
    with pytest.raises(
        StrategyError,
        match=r"topk\(k=.*\): a count is at least 1; a share \(float\) lies in \(0, 1\]",
    ):
        topk(k)


def test_all_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(StrategyError) as caught:
        topk(0, per=-1)
    assert len(caught.value.reasons) == 2
    with pytest.raises(StrategyError, match="a chunk of 4 has no 5 largest"):
        topk(5, per=4)
