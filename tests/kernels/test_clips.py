"""Where blocks are cut: every build chooses as torch does, and nothing better is given up."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.test_native import BUILT, levels
from tests.kernels.values import values
from thinwire.kernels import clips, native

pytestmark = pytest.mark.skipif(
    not BUILT, reason="built without a compiler: there are no native kernels"
)

FRACTIONS = tuple(2 ** (-i / 4) for i in range(16))


@levels
@given(
    m=st.integers(1, 6),
    block=st.one_of(st.integers(1, 300), st.sampled_from([256, 512, 1000, 5000])),
    scale=st.sampled_from([-120.0, 0.0, 100.0]),
    shape=st.sampled_from(["normal", "heavy", "equal", "one"]),
    top=st.sampled_from([0.5, 1.0, 1.5, 3.0, 7.0, 127.0]),
)
def test_the_same_fraction_is_chosen(
    level: native.Level, m: int, block: int, scale: float, shape: str, top: float
) -> None:
    rows = torch.randn(m, block, generator=torch.Generator().manual_seed(block)) * 2.0**scale
    if shape == "heavy":
        rows = values(m * block, block, scale, 0).view(m, block)
    elif shape != "normal":
        rows[:, 1 if shape == "one" else 0 :] = 0.0 if shape == "one" else 2.0**scale
    absmax, told = rows.abs().amax(1), []
    for each in (level, "torch"):
        with native.using(each):
            told.append(torch.where(absmax > 0, clips.best(rows, absmax, FRACTIONS, top), 0))
    assert torch.equal(*told)


def test_the_best_errs_least() -> None:
    rows = torch.randn(50, 256, generator=torch.Generator().manual_seed(1))
    absmax = rows.abs().amax(1)
    chosen = clips.best(rows, absmax, FRACTIONS, 7.0)

    def errors(fraction: torch.Tensor) -> torch.Tensor:
        step = (absmax * fraction / 7)[:, None]
        return (((rows / step).round().clamp(-7, 7) * step - rows) ** 2).sum(1)

    every = torch.stack([errors(torch.full((50,), each)) for each in FRACTIONS])
    assert torch.allclose(errors(chosen), every.amin(0), rtol=1e-5)
    assert 1 < chosen.unique().numel() <= len(FRACTIONS)
