import pytest
import torch

from tests.cases import CODECS
from thinwire.core import Codec, Spec, State
from thinwire.errors import PayloadError, StrategyError
from thinwire.testing import check_codec, seats
from thinwire.what import cast, threshold

SEAT, SPEC = seats()[1], Spec((), 0, 100, torch.float32)


@pytest.mark.parametrize("codec", CODECS["threshold"], ids=repr)
def test_laws(codec: Codec) -> None:
    check_codec(codec)


def test_what_is_at_the_threshold_or_above_is_sent_exactly() -> None:
    x = torch.zeros(100)
    x[[3, 50, 99]] = torch.tensor([0.5, -0.7, float("nan")])
    x[4] = 0.4999
    codec = threshold(0.5)
    payload = codec.encode(x, SPEC, State(), SEAT)
    sent = codec.decode(payload.clone(), SPEC, State(), SEAT, 1)
    assert payload.numel() == 8 + 3 + 3 * 4  # a count, three places of 7 bits, three values
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


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_threshold_is_positive_and_finite(value: float) -> None:
    with pytest.raises(StrategyError, match="positive and finite"):
        threshold(value)
