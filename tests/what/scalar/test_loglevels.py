from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thinwire.core import Coder, Spec, State
from thinwire.errors import StrategyError
from thinwire.testing import contexts
from thinwire.what import loglevels, natural

SEAT = contexts()[1]


def through(codec: Coder, x: Tensor, step: int = 0) -> Tensor:
    spec, ctx = Spec((), 0, x.numel(), torch.float32), contexts(step)[1]
    return codec.decode(codec.encode(x, spec, State(), ctx), spec, State(), SEAT, 1)


@given(n=st.integers(0, 300), bits=st.integers(3, 8), block=st.integers(0, 40))
def test_bytes_are_codes_and_one_scale_a_block(n: int, bits: int, block: int) -> None:
    blocks = -(-n // (block or max(n, 1)))
    assert (
        loglevels(bits, block=block).nbytes(Spec((), 0, n, torch.float32))
        == -(-n * bits // 8) + 4 * blocks
    )


@pytest.mark.parametrize(
    ("bits", "grid", "count"),
    [
        (3, "tread", 7),
        (4, "tread", 15),
        (8, "tread", 255),
        (2, "rise", 4),
        (4, "rise", 16),
        (8, "rise", 256),
    ],
)
def test_all_levels_are_used_and_evenly_spaced_in_log(bits: int, grid: Any, count: int) -> None:
    sent = through(loglevels(bits, 0.1, block=0, grid=grid), torch.linspace(-1, 1, 20_001)).unique()
    assert sent.numel() == count
    assert (0 in sent) == (grid == "tread")
    logs = sent[sent > 0].log10()
    assert torch.allclose(logs, torch.linspace(-1, 0, len(logs)), atol=1e-5)


def test_four_bits_down_to_a_64th_are_powers_of_two() -> None:
    x = torch.linspace(1 / 64, 1, 5000)
    sent = through(loglevels(4, 1 / 64, block=0, rounding="stochastic"), torch.cat([x, -x]))
    assert set(sent.abs().log2().unique().tolist()) <= set(range(-6, 1))
    assert natural().nbytes(Spec((), 0, 1000, torch.float32)) > loglevels(4).nbytes(
        Spec((), 0, 1000, torch.float32)
    )


def test_the_relative_error_reaches_its_bound() -> None:
    x = torch.linspace(0.1, 1, 20_001)
    r = 0.1 ** (1 / 6)
    error = ((through(loglevels(4, 0.1, block=0), x) - x) / x).abs().max()
    assert 0.98 * (1 - r) / (1 + r) < error <= 1.001 * (1 - r) / (1 + r)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"bits": 1}, "choose 2 to 8"),
        ({"bits": 9}, "choose 2 to 8"),
        ({"bits": 2}, "use ternary()"),
        ({"smallest": 0.0}, "a share of the largest magnitude"),
        ({"smallest": 1.0}, "a share of the largest magnitude"),
        ({"block": -1}, "0 for the whole span"),
        ({"rounding": "up"}, "choose 'nearest' or 'stochastic'"),
        ({"grid": "round"}, "choose 'tread' or 'rise'"),
    ],
)
def test_a_wrong_argument_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(StrategyError) as caught:
        loglevels(**settings)
    assert told in str(caught.value)
