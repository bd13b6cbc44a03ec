"""Exponents and digits: every build gives what torch gives, through the codecs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.test_native import BUILT, levels
from tests.kernels.values import same, values
from thinwire.core import Coder, RankContext, Spec, State
from thinwire.kernels import coarse, native
from thinwire.what import natural, ternary

pytestmark = pytest.mark.skipif(
    not BUILT, reason="built without a compiler: there are no native kernels"
)

SEAT = RankContext(1, (0, 1), 3, 5)
DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16)


def told(level: native.Level, codec: Coder, x: Tensor) -> list[Tensor]:
    """Return the payload, its scales apart, what it decodes to, and that added to ones."""
    spec, state = Spec((), 0, x.numel(), torch.float32), State()
    total, out = torch.ones(x.numel()), torch.empty(x.numel())
    with native.using(level):
        payload = codec.encode(x, spec, state, SEAT)
        decoded = codec.decode(payload, spec, state, SEAT, 1)
        codec.accumulate(total, payload, spec, state, SEAT, 1)
        codec.fill(out, payload, spec, state, SEAT, 1)
    assert same(out, decoded)
    head = 4 * -(-x.numel() // (codec.block or x.numel())) if isinstance(codec, ternary) else 0
    return [payload[:head].clone().view(torch.float32), payload[head:], decoded, total]


@levels
@given(
    codec=st.sampled_from(
        [
            natural(),
            natural("nearest"),
            ternary(),
            ternary(0),
            ternary(7),
            ternary(48),
            ternary(64, "nearest"),
            ternary(33, clip=2.5),
        ]
    ),
    n=st.one_of(st.integers(1, 700), st.sampled_from([4096, 4801])),
    scale=st.sampled_from([-140.0, -120.0, 0.0, 120.0]),
    odd=st.sampled_from([0, 0, 3]),
    dtype=st.sampled_from(DTYPES),
)
def test_payloads_are_those_of_torch(
    level: native.Level, codec: Coder, n: int, scale: float, odd: int, dtype: torch.dtype
) -> None:
    x = values(n, n, scale, odd).to(dtype)
    made, expected = (told(each, codec, x) for each in (level, "torch"))
    assert all(same(a, b) for a, b in zip(made, expected, strict=True))


def test_all_exponents_are_decoded_alike() -> None:
    codes = torch.arange(256, dtype=torch.int16).to(torch.uint8)
    payload = torch.cat([codes, torch.full((32,), 0b01010110, dtype=torch.uint8)])
    spec = Spec((), 0, 256, torch.float32)
    made = []
    for level in (*BUILT, "torch"):
        with native.using(level):
            made.append(natural().decode(payload, spec, State(), SEAT, 1))
    assert all(same(each, made[-1]) for each in made)


def test_what_no_kernel_takes_is_left_to_torch() -> None:
    x = torch.ones(4, dtype=torch.float64)
    assert coarse.natural_encode(x, None) is None
    assert coarse.ternary_encode(x, 4, None, (1, 2)) is None
    payload = torch.zeros(5, dtype=torch.uint8)
    assert coarse.natural_decode(payload, x, 4, True) is None
    with native.using("torch"):
        assert coarse.ternary_decode(payload, None, 4, 4, False) is None
