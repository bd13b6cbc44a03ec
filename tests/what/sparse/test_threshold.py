import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thinwire.core import Spec, State
from thinwire.errors import PayloadError, StrategyError
from thinwire.testing import contexts
from thinwire.what import cast, threshold
from thinwire.what.sparse import _indices

SEAT, SPEC = contexts()[1], Spec((), 0, 100, torch.float32)


def test_what_is_at_the_threshold_or_above_is_sent_exactly() -> None:
    x = torch.zeros(100)
    x[[3, 50, 99]] = torch.tensor([0.5, -0.7, float("nan")])
    x[4] = 0.4999
    codec = threshold(0.5)
    payload = codec.encode(x, SPEC, State(), SEAT)
    sent = codec.decode(payload.clone(), SPEC, State(), SEAT, 1)
    assert payload.numel() == 8 + 3 + 3 * 4  # a count, three places in 24 bits, three values
    assert sent.nonzero().view(-1).tolist() == [3, 50, 99]
    assert sent[[3, 50]].tolist() == pytest.approx([0.5, -0.7])


@pytest.mark.parametrize("codec", [threshold(2.0), threshold(2.0) >> cast()], ids=repr)
def test_nothing_to_say_takes_no_bytes(codec: threshold) -> None:
    state = codec.init(SPEC, SEAT)
    payload = codec.encode(torch.ones(100), SPEC, state, SEAT)
    assert payload.numel() == 0
    assert codec.decode(payload, SPEC, state, SEAT, 1).tolist() == [0] * 100


def test_no_payload_is_larger_than_stated() -> None:
    payload = threshold(0.1).encode(torch.ones(100), SPEC, State(), SEAT)
    assert payload.numel() == threshold(0.1).max_nbytes(SPEC)


@pytest.mark.parametrize("count", [101, 2**40, 0, -1])
def test_a_count_that_cannot_be_is_refused(count: int) -> None:
    payload = threshold(0.5).encode(torch.ones(100), SPEC, State(), SEAT)
    payload[:8] = torch.tensor([count]).view(torch.uint8)
    with pytest.raises(PayloadError, match="claims"):
        threshold(0.5).decode(payload, SPEC, State(), SEAT, 1)


@given(seed=st.integers(0, 2**32), n=st.integers(1, 200), t=st.floats(0.01, 4))
def test_bytes_are_a_count_the_smallest_places_and_the_values(seed: int, n: int, t: float) -> None:
    x, spec = (
        torch.randn(n, generator=torch.Generator().manual_seed(seed)),
        Spec((), 0, n, torch.float32),
    )
    payload = threshold(t).encode(x, spec, State(), SEAT)
    count = int((x.abs() >= t).sum())
    assert payload.numel() == (8 + 4 * count + _indices.smallest_nbytes(count, n) if count else 0)
    assert payload.numel() <= threshold(t).max_nbytes(spec) == 8 + 4 * n + (n + 7) // 8


@pytest.mark.parametrize("scale", [1e-42, 1e-20, 1.0, 1e30])
@pytest.mark.parametrize(
    ("codec", "bar"),
    [(threshold(0.5, of="max"), 2.0), (threshold(1.5, of="rms"), 1.5 * 6.5**0.5)],
    ids=repr,
)
def test_a_relative_threshold_follows_the_scale(codec: threshold, bar: float, scale: float) -> None:
    x = torch.tensor([0.0, 3.0, -4.0, 1.0]) * scale
    assert float(codec.bar(x)) == pytest.approx(bar * scale, rel=0.01)
    spec = Spec((), 0, 4, torch.float32)
    assert codec.decode(
        codec.encode(x, spec, State(), SEAT), spec, State(), SEAT, 1
    ).nonzero().view(-1).tolist() == ([1, 2] if bar < 3 else [2])


@pytest.mark.parametrize("codec", [threshold(0.5, of="max"), threshold(1.5, of="rms")], ids=repr)
def test_a_relative_threshold_hears_what_is_no_number_and_is_silent_on_zeros(
    codec: threshold,
) -> None:
    spec = Spec((), 0, 4, torch.float32)
    assert codec.encode(torch.zeros(4), spec, State(), SEAT).numel() == 0
    x = torch.tensor([float("nan"), float("inf"), 4.0, 0.1])
    sent = codec.decode(codec.encode(x, spec, State(), SEAT), spec, State(), SEAT, 1)
    assert sent.isfinite().tolist() == [False, False, True, True]
    assert sent[2:].tolist() == [4.0, 0.0]


def test_all_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(StrategyError) as caught:
        threshold(-1.0, of="mean")  # type: ignore[arg-type]
    assert len(caught.value.reasons) == 2
    with pytest.raises(StrategyError, match="nothing is larger than the largest"):
        threshold(1.1, of="max")


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_threshold_is_positive_and_finite(value: float) -> None:
    with pytest.raises(StrategyError, match="positive and finite"):
        threshold(value)
