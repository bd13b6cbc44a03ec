"""The largest of values that make a search for them hard are those of the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernels.test_native import BUILT, levels
from tests.kernels.values import same
from thinwire.kernels import fast, native, reference

pytestmark = pytest.mark.skipif(
    not BUILT, reason="built without a compiler: there are no native kernels"
)

KINDS = (
    "zero",
    "constant",
    "sorted",
    "sparse",
    "denormal",
    "outlier",
    "scaled",
    "rounded",
    "odd",
    "two",
)


def rows(kind: str, m: int, per: int) -> Tensor:
    """Return rows (m, per) of one kind."""
    draw = torch.Generator().manual_seed(per)
    x, some = torch.randn(m, per, generator=draw), torch.rand(m, per, generator=draw)
    odd = torch.where(some < 0.3, float("nan"), torch.where(some < 0.4, -float("inf"), x))
    made = {
        "zero": x * 0,
        "constant": torch.full_like(x, -0.37),
        "sorted": x.view(-1).sort().values.view(m, per),
        "sparse": torch.where(some < 0.03, x, 0.0),
        "denormal": x * 1e-40,
        "outlier": torch.where(torch.arange(per) == per // 3, 1e30, x),
        "scaled": x * torch.exp2(torch.randint(-40, 40, (m, 1), generator=draw)),
        "rounded": (2 * x).round(),
        "odd": odd,
        "two": torch.where(some < 0.5, 1.0, 2.0),
    }
    return made[kind]


@levels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_of_hard_values(level: native.Level, kind: str, dtype: torch.dtype) -> None:
    for per in (1, 63, 64, 100, 256, 320, 4096, 40_000):
        for k in {1, max(1, per // 64), max(1, per // 10), max(1, per // 2), per}:
            x = rows(kind, 9, per).to(dtype)
            with native.using(level):
                indices, values = fast.largest(x, k)
            expected = reference.largest(x.float(), k)
            assert same(indices, expected)
            assert same(values, x.float().gather(1, expected))
