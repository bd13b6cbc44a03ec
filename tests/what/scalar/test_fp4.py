from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thinwire.core import Coder, Spec, State
from thinwire.errors import StrategyError
from thinwire.testing import contexts
from thinwire.what import fp4

SEAT = contexts()[1]


def through(codec: Coder, x: Tensor, step: int = 0) -> Tensor:
    spec, ctx = Spec((), 0, x.numel(), torch.float32), contexts(step)[1]
    return codec.decode(codec.encode(x, spec, State(), ctx), spec, State(), SEAT, 1)


@given(n=st.integers(0, 300), block=st.integers(0, 40), format=st.sampled_from(["e2m1", "e3m0"]))
def test_bytes_are_half_a_byte_a_value_and_one_scale_a_block(
    n: int, block: int, format: Any
) -> None:
    blocks = -(-n // (block or max(n, 1)))
    assert fp4(format, block).nbytes(Spec((), 0, n, torch.float32)) == -(-n // 2) + 4 * blocks


@pytest.mark.parametrize(("format", "most"), [("e2m1", 1 / 6), ("e3m0", 4 / 16)])
def test_all_levels_are_used_and_the_error_reaches_half_the_widest_gap(
    format: Any, most: float
) -> None:
    x = torch.linspace(-1, 1, 20_001)
    nearest, drawn = (
        through(fp4(format, block=0, rounding=rounding), x)
        for rounding in ("nearest", "stochastic")
    )  # type: ignore[arg-type]
    assert nearest.unique().numel() == drawn.unique().numel() == 15
    assert 0.99 * most < (nearest - x).abs().max() <= 1.0001 * most
    assert 1.9 * most < (drawn - x).abs().max() < 2.0001 * most


def test_codes_are_a_sign_an_exponent_and_a_mantissa() -> None:
    spec, x = (
        Spec((), 0, 16, torch.float32),
        torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]),
    )
    codes = fp4("e2m1").encode(x, spec, State(), SEAT)[4:]
    assert torch.stack([codes & 15, codes >> 4], 1).view(-1).tolist() == [
        *range(8),
        0,
        *range(9, 16),
    ]


def test_all_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(StrategyError) as caught:
        fp4("e1m2", block=-1, rounding="up")  # type: ignore[arg-type]
    assert len(caught.value.reasons) == 3
