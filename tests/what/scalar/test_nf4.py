from statistics import NormalDist

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thinwire.core import Coder, Spec, State
from thinwire.errors import StrategyError
from thinwire.testing import contexts
from thinwire.what import fp4, nf4, uniform

SEAT = contexts()[1]


def through(codec: Coder, x: Tensor, step: int = 0) -> Tensor:
    spec, ctx = Spec((), 0, x.numel(), torch.float32), contexts(step)[1]
    return codec.decode(codec.encode(x, spec, State(), ctx), spec, State(), SEAT, 1)


@given(n=st.integers(0, 300), block=st.integers(0, 40))
def test_bytes_are_half_a_byte_a_value_and_one_scale_a_block(n: int, block: int) -> None:
    blocks = -(-n // (block or max(n, 1)))
    assert nf4(block).nbytes(Spec((), 0, n, torch.float32)) == -(-n // 2) + 4 * blocks


def test_levels_are_the_papers_quantiles() -> None:
    offset = (1 - 1 / 32 + 1 - 1 / 30) / 2  # as the paper's code has it
    above = [NormalDist().inv_cdf(offset + (0.5 - offset) * i / 8) for i in range(8)]
    below = [-NormalDist().inv_cdf(offset + (0.5 - offset) * i / 7) for i in range(7)]
    wanted = torch.tensor(sorted([*above, 0.0, *below])) / max(above)
    sent = through(nf4(block=0), torch.linspace(-1, 1, 20_001)).unique()
    assert sent.numel() == 16
    assert torch.allclose(sent, wanted, atol=2e-3)


def test_the_error_reaches_half_the_widest_gap() -> None:
    x = torch.linspace(-1, 1, 20_001)
    assert 0.151 < (through(nf4(block=0), x) - x).abs().max() < 0.1525
    assert 0.29 < (through(nf4(block=0, rounding="stochastic"), x) - x).abs().max() < 0.305


def test_on_normal_values_it_beats_other_grids_of_4_bits() -> None:
    x = torch.randn(65_536, generator=torch.Generator().manual_seed(0))
    errors = [
        float((through(codec, x) - x).norm()) for codec in (nf4(64), fp4(block=64), uniform(4, 64))
    ]
    assert errors[0] < min(errors[1:])


def test_all_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(StrategyError) as caught:
        nf4(block=-1, rounding="up")  # type: ignore[arg-type]
    assert len(caught.value.reasons) == 2
