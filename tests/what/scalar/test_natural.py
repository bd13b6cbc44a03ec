import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thinwire.core import Coder, Spec, State
from thinwire.errors import StrategyError
from thinwire.testing import contexts
from thinwire.what import natural

SEAT = contexts()[1]


def through(codec: Coder, x: Tensor, step: int = 0) -> Tensor:
    spec, ctx = Spec((), 0, x.numel(), torch.float32), contexts(step)[1]
    return codec.decode(codec.encode(x, spec, State(), ctx), spec, State(), SEAT, 1)


@given(n=st.integers(0, 300))
def test_bytes_are_nine_bits_a_value_twelve_in_float64(n: int) -> None:
    assert natural().nbytes(Spec((), 0, n, torch.float32)) == n + -(-n // 8)
    assert natural().nbytes(Spec((), 0, n, torch.float64)) == -(-11 * n // 8) + -(-n // 8)


def test_powers_of_two_and_zeros_arrive_as_they_are() -> None:
    x = torch.cat([s * torch.exp2(torch.arange(-126.0, 128)) for s in (1, -1)] + [torch.zeros(3)])
    for codec in (natural(), natural("nearest")):
        assert torch.equal(through(codec, x), x)


def test_what_arrives_is_a_neighbouring_power_and_the_error_reaches_its_bound() -> None:
    x = torch.linspace(1, 2, 10_001)[1:-1]
    for codec, most in ((natural(), 1.0), (natural("nearest"), 1 / 3)):
        sent = through(codec, x)
        assert sent.unique().tolist() == [1.0, 2.0]
        assert 0.9 * most < ((sent - x) / x).abs().max() <= 1.0001 * most


def test_the_mean_square_error_at_random_is_within_an_eighth() -> None:
    x = torch.full((100_000,), 4 / 3)  # where it is largest
    error = through(natural(), x) - x
    assert 0.12 < float(error.square().mean() / x[0] ** 2) < 0.13
    assert abs(float(error.mean())) < 0.01


def test_the_smallest_and_the_largest() -> None:
    tiny = torch.finfo(torch.float32).smallest_normal
    x = torch.tensor([0.2 * tiny, 0.8 * tiny, -0.8 * tiny, 3.4e38, -3.4e38])
    assert through(natural("nearest"), x).tolist() == [0.0, tiny, -tiny, 2.0**127, -(2.0**127)]
    assert through(natural(), torch.full((40_000,), 0.2 * tiny)).mean() == pytest.approx(
        0.2 * tiny, rel=0.1
    )


def test_a_bad_value_spoils_itself_alone() -> None:
    x = torch.tensor([1.0, float("nan"), 2.0, float("inf"), -float("inf"), 4.0])
    assert through(natural(), x).isnan().tolist() == [False, True, False, True, True, False]


def test_a_wrong_rounding_is_refused() -> None:
    with pytest.raises(StrategyError, match="choose 'nearest' or 'stochastic'"):
        natural("up")  # type: ignore[arg-type]
