from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thinwire.core import Coder, Spec, State
from thinwire.errors import PayloadError, StrategyError
from thinwire.testing import contexts
from thinwire.what import ternary
from thinwire.what.scalar.ternary import pack_digits, unpack_digits

SEAT = contexts()[1]


def through(codec: Coder, x: Tensor, step: int = 0) -> Tensor:
    spec, ctx = Spec((), 0, x.numel(), torch.float32), contexts(step)[1]
    return codec.decode(codec.encode(x, spec, State(), ctx), spec, State(), SEAT, 1)


@given(n=st.integers(0, 300), block=st.integers(0, 40))
def test_bytes_are_a_fifth_a_value_and_one_scale_a_block(n: int, block: int) -> None:
    blocks = -(-n // (block or max(n, 1)))
    assert ternary(block).nbytes(Spec((), 0, n, torch.float32)) == -(-n // 5) + 4 * blocks
    assert ternary(block).nbytes(Spec((), 0, n, torch.float64)) == -(-n // 5) + 8 * blocks


@given(digits=st.lists(st.integers(0, 2), max_size=40))
def test_digits_are_packed_in_base_3_the_first_lowest(digits: list[int]) -> None:
    payload = pack_digits(torch.tensor(digits, dtype=torch.uint8))
    assert unpack_digits(payload, len(digits)).tolist() == digits
    number = [
        sum(digit * 3**i for i, digit in enumerate(digits[at : at + 5]))
        for at in range(0, len(digits), 5)
    ]
    assert payload.tolist() == number


def test_three_levels_arrive() -> None:
    x = torch.linspace(-1, 1, 20_001)
    drawn, nearest = through(ternary(block=0), x), through(ternary(block=0, rounding="nearest"), x)
    assert drawn.unique().tolist() == [-1.0, 0.0, 1.0]
    assert (
        0.97 < (drawn - x).abs().max() <= 1
    )  # of 600 values within 0.03 of zero, 9 are drawn far from it
    s = float(nearest.max())
    assert nearest.unique().tolist() == [-s, 0.0, s]
    assert s == pytest.approx(0.675, abs=1e-3)  # the mean of those above 0.7 · ½
    assert (nearest - x).abs().max() == pytest.approx(max(s / 2, 1 - s), rel=1e-3)


def test_on_normal_values_nearest_and_clipping_lose_less() -> None:
    x = torch.randn(65_536, generator=torch.Generator().manual_seed(0))
    codecs = ternary(rounding="nearest"), ternary(clip=2.5), ternary()
    lost = [float((through(codec, x) - x).norm() / x.norm()) for codec in codecs]
    assert 0.4 < lost[0] < 0.46  # 0.436: the best that three levels do on a normal distribution
    assert lost[0] < lost[1] < lost[2]


def test_the_mean_of_what_is_cut_is_the_cut_value() -> None:
    x = torch.ones(1000)
    x[0] = 1000.0
    sent = torch.stack([through(ternary(block=0, clip=2.5), x, step) for step in range(50)]).mean(0)
    assert sent[0] == pytest.approx(2.5 * 1001.0**0.5 / 1000**0.5 * 1000**0.5, rel=0.05)
    assert sent[1:].mean() == pytest.approx(1.0, rel=0.05)


def test_huge_values_have_scales() -> None:
    x = torch.full((9,), 3e38)
    for codec in (ternary(), ternary(clip=2.5), ternary(rounding="nearest")):
        assert torch.allclose(through(codec, x), x)


def test_a_bad_value_spoils_its_block_and_no_other() -> None:
    for codec in (ternary(4), ternary(4, clip=1.0), ternary(4, "nearest")):
        x = torch.ones(12)
        x[5] = -float("inf")
        assert through(codec, x).isnan().tolist() == [False] * 4 + [True] * 4 + [False] * 4


def test_a_byte_that_is_no_five_digits_is_refused() -> None:
    spec = Spec((), 0, 10, torch.float32)
    payload = ternary().encode(torch.ones(10), spec, State(), SEAT)
    payload[-1] = 243
    with pytest.raises(PayloadError, match="corrupted"):
        ternary().decode(payload, spec, State(), SEAT, 1)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"block": -1}, "0 for the whole span"),
        ({"rounding": "up"}, "choose 'nearest' or 'stochastic'"),
        ({"clip": 0.0}, "positive and finite"),
        ({"clip": 2.5, "rounding": "nearest"}, "leave clip out"),
    ],
)
def test_a_wrong_argument_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(StrategyError) as caught:
        ternary(**settings)
    assert told in str(caught.value)
