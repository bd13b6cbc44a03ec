from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thinwire.core import Coder, Spec, State
from thinwire.errors import StrategyError
from thinwire.testing import contexts
from thinwire.what import loglevels, powerlevels, uniform

SEAT = contexts()[1]


def through(codec: Coder, x: Tensor, step: int = 0) -> Tensor:
    spec, ctx = Spec((), 0, x.numel(), torch.float32), contexts(step)[1]
    return codec.decode(codec.encode(x, spec, State(), ctx), spec, State(), SEAT, 1)


@given(n=st.integers(0, 300), bits=st.integers(3, 8), block=st.integers(0, 40))
def test_bytes_are_codes_and_one_scale_a_block(n: int, bits: int, block: int) -> None:
    blocks = -(-n // (block or max(n, 1)))
    assert (
        powerlevels(bits, block=block).nbytes(Spec((), 0, n, torch.float32))
        == -(-n * bits // 8) + 4 * blocks
    )


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize(
    ("bits", "grid", "count"),
    [(3, "tread", 7), (4, "tread", 15), (5, "tread", 31), (2, "rise", 4), (4, "rise", 16)],
)
def test_all_levels_are_used_and_even_under_the_root(
    bits: int, grid: Any, count: int, power: float
) -> None:
    sent = through(
        powerlevels(bits, power, block=0, grid=grid), torch.linspace(-1, 1, 50_001)
    ).unique()
    assert sent.numel() == count
    assert (0 in sent) == (grid == "tread")
    roots = sent.sign() * sent.abs() ** (1 / power)
    assert torch.allclose(roots, torch.linspace(-1, 1, count), atol=1e-5)


def test_the_power_one_is_a_uniform_grid() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(
        through(powerlevels(5, 1.0, 50), x), through(uniform(5, 50), x), atol=1e-6
    )


def test_the_gap_at_the_top_is_power_times_a_step() -> None:
    x = torch.linspace(0.9, 1, 20_001)
    for power in (1.0, 2.0, 3.0):
        widest = (1 - (1 - 1 / 127) ** power) / 2
        assert float((through(powerlevels(8, power, block=0), x) - x).abs().max()) == pytest.approx(
            widest, rel=0.01
        )


def test_heavy_tails_lose_less_than_on_a_uniform_and_a_logarithmic_grid() -> None:
    x = torch.randn(2**15, generator=torch.Generator().manual_seed(0)) ** 3
    errors = [
        float((through(codec, x) - x).norm() / x.norm())
        for codec in (powerlevels(), uniform(8), loglevels(8, 1e-3))
    ]
    assert errors[0] < 0.7 * min(errors[1:])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"bits": 1}, "choose 2 to 8"),
        ({"bits": 9}, "choose 2 to 8"),
        ({"bits": 2}, "use ternary()"),
        ({"power": 0.5}, "widest where most values lie"),
        ({"power": float("nan")}, "choose 1 to 8"),
        ({"block": -1}, "0 for the whole span"),
        ({"rounding": "up"}, "choose 'nearest' or 'stochastic'"),
        ({"grid": "round"}, "choose 'tread' or 'rise'"),
    ],
)
def test_a_wrong_argument_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(StrategyError) as caught:
        powerlevels(**settings)
    assert told in str(caught.value)
