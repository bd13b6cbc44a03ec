from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thinwire.core import Coder, Spec, State
from thinwire.errors import StrategyError
from thinwire.testing import contexts
from thinwire.what import fp8

SEAT = contexts()[1]


def through(codec: Coder, x: Tensor, step: int = 0) -> Tensor:
    spec, ctx = Spec((), 0, x.numel(), torch.float32), contexts(step)[1]
    return codec.decode(codec.encode(x, spec, State(), ctx), spec, State(), SEAT, 1)


@given(n=st.integers(0, 300), block=st.integers(0, 40), format=st.sampled_from(["e4m3", "e5m2"]))
def test_bytes_are_a_byte_a_value_and_one_scale_a_block(n: int, block: int, format: Any) -> None:
    blocks = -(-n // (block or max(n, 1)))
    assert fp8(format, block).nbytes(Spec((), 0, n, torch.float32)) == n + 4 * blocks
    assert fp8(format, block).nbytes(Spec((), 0, n, torch.float64)) == n + 8 * blocks


@pytest.mark.parametrize(
    ("format", "dtype", "top"),
    [("e4m3", torch.float8_e4m3fn, 448), ("e5m2", torch.float8_e5m2, 57344)],
)
def test_bytes_are_torchs_own_floats(format: Any, dtype: torch.dtype, top: float) -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    x[7] = -top  # so that the scale is 1
    spec = Spec((), 0, 1000, torch.float32)
    for rounding, least in (("nearest", 1000), ("stochastic", 400)):
        payload = fp8(format, block=0, rounding=rounding).encode(x, spec, State(), SEAT)  # type: ignore[arg-type]
        assert payload[:4].view(torch.float32) == 1
        same = payload[4:].view(dtype).float() == x.to(dtype).float()
        assert least <= int(same.sum()) <= (1000 if rounding == "nearest" else 800)
        assert payload[4:].view(dtype).float().isfinite().all()


@pytest.mark.parametrize(("format", "most"), [("e4m3", 2**-4), ("e5m2", 2**-3)])
def test_the_relative_error_reaches_half_a_unit_of_the_mantissa(format: Any, most: float) -> None:
    x = torch.linspace(0.5, 1, 20_001)
    for rounding, times in (("nearest", 1), ("stochastic", 2)):
        worst = ((through(fp8(format, block=0, rounding=rounding), x) - x) / x).abs().max()  # type: ignore[arg-type]
        assert 0.85 * most * times < worst <= 1.001 * most * times


def test_a_bad_value_spoils_its_block_and_no_other() -> None:
    for bad in (float("nan"), float("inf")):
        x = torch.ones(12)
        x[5] = bad
        assert through(fp8(block=4), x).isnan().tolist() == [False] * 4 + [True] * 4 + [False] * 4


def test_all_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(StrategyError) as caught:
        fp8("e3m4", block=-1, rounding="up")  # type: ignore[arg-type]
    assert len(caught.value.reasons) == 3
