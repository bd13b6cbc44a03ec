"""Transform the square tiles of a matrix by cosines natively, where a kernel takes them.

A kernel's sums have another order than a product in torch, so results agree to rounding alone.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from thinwire.kernels import native

_SIZES = range(32, 257, 32)  # of a tile: whole vectors, and few enough to stay in a cache


def forward(area: Tensor, tiles: Tensor) -> bool:
    """Write D X Dᵀ of each tile X to `tiles`, and return whether a kernel did.

    Args:
        area: the tiles where they lie in a matrix, a view: (down, across, size, size).
        tiles: one tile behind the other: (down · across · size²,).
    """
    kernels = _kernels(area, tiles)
    if kernels is not None:
        settings = _settings(area)
        to = (tiles.data_ptr(), torch.get_num_threads())
        kernels.lib.dct_tiles(area.data_ptr(), *settings, *to)
    return kernels is not None


def backward(tiles: Tensor, area: Tensor) -> bool:
    """Write Dᵀ C D of each tile C to `area`, and return whether a kernel did; as `forward`."""
    kernels = _kernels(area, tiles)
    if kernels is not None:
        to = (area.data_ptr(), torch.get_num_threads())
        kernels.lib.dct_tiles_back(tiles.data_ptr(), *_settings(area), *to)
    return kernels is not None


@lru_cache(maxsize=512)
def matrix(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the orthonormal DCT-II: (size, size), a frequency a row.

    Example:
        >>> d = matrix(4, torch.float64, torch.device("cpu"))
        >>> torch.allclose(d @ d.T, torch.eye(4, dtype=torch.float64))
        True
    """
    with torch.inference_mode(False):
        k = torch.arange(size, dtype=torch.float64, device="cpu")
        rows = torch.cos(math.pi * (2 * k + 1) * k[:, None] / (2 * size)) * math.sqrt(2 / size)
        rows[0] /= math.sqrt(2)
        return rows.to(device=device, dtype=dtype)


@lru_cache(maxsize=16)
def _halves(size: int) -> Tensor:
    """Return the left halves of the even and of the odd rows, and both transposed."""
    left = matrix(size, torch.float32, torch.device("cpu"))[:, : size // 2]
    return torch.stack([left[::2], left[1::2], left[::2].T, left[1::2].T]).contiguous()


def _kernels(area: Tensor, tiles: Tensor) -> native.Kernels | None:
    square = area.shape[2] == area.shape[3] and area.shape[3] in _SIZES and area.stride(3) == 1
    return native.library(tiles) if square and area.dtype == tiles.dtype else None


def _settings(area: Tensor) -> tuple[int, int, int, int, int]:
    """Return the distance of rows, the tiles of a column and of a row, their size, and the
    transform."""
    down, across, size, _ = area.shape
    return area.stride(2), down, across, size, _halves(size).data_ptr()
