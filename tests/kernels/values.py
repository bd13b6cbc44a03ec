"""Values that try a kernel, how its results are compared, and what hypothesis draws for it."""

from typing import get_args

import torch
from hypothesis import strategies as st
from torch import Tensor

from thinwire.kernels.reference import Grid

ODD = (
    float("nan"),
    float("inf"),
    -float("inf"),
    0.0,
    -0.0,
    1e-45,
    -1e-40,
    3e38,
    -3.4e38,
    1e-38,
    2.0**64,
    -(2.0**-100),
)


def values(n: int, seed: int, scale: float, odd: int) -> Tensor:
    """Heavy-tailed draws, some of them odd ones."""
    draw = torch.Generator().manual_seed(seed)
    x: Tensor = torch.randn(n, generator=draw) * 2.0**scale * torch.rand(n, generator=draw) ** 4
    for place in torch.randint(0, n, (odd,), generator=draw):
        x[place] = ODD[int(torch.randint(0, len(ODD), (), generator=draw))]
    return x


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, any NaN the same as any other."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    bits = torch.int16 if a.dtype.itemsize == 2 else torch.int32
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(
        a.nan_to_num(7).view(bits), b.nan_to_num(7).view(bits)
    )


def tensors_of(sizes: st.SearchStrategy[int]) -> st.SearchStrategy[Tensor]:
    """Values of such sizes, of every scale."""
    return st.builds(
        values,
        sizes,
        st.integers(0, 2**32),
        st.sampled_from([-140.0, -90.0, -10.0, 0.0, 60.0, 120.0]),
        st.sampled_from([0, 0, 1, 5]),
    )


words = st.integers(0, 2**32 - 1)
keys = st.one_of(st.none(), st.tuples(words, words))
GRIDS: list[tuple[int, Grid]] = [
    (bits, grid) for bits in range(1, 9) for grid in get_args(Grid) if bits > 1 or grid == "rise"
]
grids = st.sampled_from(GRIDS)
