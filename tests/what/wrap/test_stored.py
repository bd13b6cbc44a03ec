import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thinwire.kernels.int8 import BLOCK
from thinwire.what.wrap._stored import Int8

INFO = torch.finfo(torch.float32)


def values(kind: str, seed: int, n: int) -> Tensor:
    normal = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scales = torch.linspace(-140, 120, n, dtype=torch.float64)
    return {
        "normal": normal,
        "heavy": normal**9,
        "zeros": normal * 0,
        "one": torch.where(torch.arange(n) == n // 2, 1.0, 0.0),
        "every scale": normal.clamp(-3, 3) * torch.exp2(scales),
        "tiny": normal.clamp(-3, 3) * 1e-39,
        "subnormal": torch.full((n,), 2.0**-149, dtype=torch.float64) * normal.sign(),
        "huge": normal.sign()
        * INFO.max
        * torch.rand(n, generator=torch.Generator().manual_seed(seed + 1)).double(),
        "largest": normal.sign() * INFO.max,
    }[kind].float()


KINDS = ["normal", "heavy", "zeros", "one", "every scale", "tiny", "subnormal", "huge", "largest"]


@given(st.sampled_from(KINDS), st.integers(0, 2**32), st.integers(1, 1100))
def test_what_was_packed_once_packs_to_the_same_bytes(kind: str, seed: int, n: int) -> None:
    form = Int8(n)
    kept = form.pack(values(kind, seed, n))
    assert torch.equal(form.pack(form.unpack(kept)), kept)


@given(st.sampled_from(KINDS), st.integers(0, 2**32), st.integers(1, 1100))
def test_each_value_is_half_a_step_off_at_most(kind: str, seed: int, n: int) -> None:
    x = values(kind, seed, n)
    got = Int8(n).unpack(Int8(n).pack(x))
    assert got.isfinite().all()
    for block, back in zip(x.split(BLOCK), got.split(BLOCK), strict=True):
        step = max(float(block.double().abs().max()) / 127 * (1 + 2**-15), INFO.smallest_normal)
        assert float((back.double() - block.double()).abs().max()) <= step / 2 * (1 + 1e-6)


def test_it_does_round() -> None:
    x = values("normal", 0, 1000)
    assert float((Int8(1000).unpack(Int8(1000).pack(x)) - x).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("n", "nbytes"), [(0, 0), (1, 5), (256, 260), (257, 265), (1 << 20, (1 << 20) + (1 << 14))]
)
def test_bytes(n: int, nbytes: int) -> None:
    kept = Int8(n).pack(torch.zeros(n))
    assert (kept.numel(), kept.dtype) == (nbytes, torch.uint8)
    assert Int8(n).unpack(kept).tolist() == [0.0] * n


def test_it_takes_values_that_are_not_contiguous() -> None:
    x = values("normal", 1, 600)
    assert torch.equal(Int8(300).pack(x[::2]), Int8(300).pack(x[::2].clone()))
