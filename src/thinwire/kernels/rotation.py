"""Rotate blocks by the Walsh–Hadamard matrix, with signs: natively, or in plain torch.

Both are equal bit for bit. Blocks lie one after the other; the last one is filled up with zeros to
a power of two of its own, and `size` says how long it then is. Signs are a bit a value, 1 for -1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from thinwire.kernels import memory, native, reference


def core_numel(n: int, block: int) -> int:
    """Return the values of all blocks of n values.

    Example:
        >>> core_numel(10, 4), core_numel(12, 4), core_numel(7, 4)
        (10, 12, 8)
    """
    return n // block * block + _tail(n, block)


def turned(x: Tensor, block: int, signs: Tensor) -> Tensor:
    """Return x (n,) in blocks, times the signs, over √block, rotated: (core_numel,).

    bf16 and half are widened, which is exact.
    """
    n, x = x.numel(), x.contiguous()
    kernels = native.library(x, *native.KINDS)
    if kernels is not None:
        out = memory.empty(core_numel(n, block))
        settings = (n, block, *_scales(n, block), signs.data_ptr())
        at, to = (x.data_ptr(), native.KINDS[x.dtype]), (out.data_ptr(), torch.get_num_threads())
        kernels.lib.hadamard_turn(*at, *settings, *to)
        return out
    core = torch.zeros(core_numel(n, block), dtype=_wide(x.dtype), device=x.device)
    core[:n] = x
    return _rotated(core.mul_(_as_numbers(signs, core)), n, block)


def turned_back(
    core: Tensor, n: int, block: int, signs: Tensor, total: Tensor | None = None
) -> Tensor:
    """Undo `turned`: return (n,); or add that to `total`, and return it."""
    core = core.contiguous()
    fits = total is None or (total.is_contiguous() and total.dtype == core.dtype)
    kernels = native.library(core) if fits else None
    if kernels is None:
        values = _rotated(core, n, block).mul_(_as_numbers(signs, core))[:n]
        return values if total is None else total.add_(values)
    out = memory.empty(n) if total is None else total
    settings = (n, block, *_scales(n, block), signs.data_ptr(), total is not None)
    to = (out.data_ptr(), torch.get_num_threads())
    kernels.lib.hadamard_turn_back(core.data_ptr(), *settings, *to)
    return out


def rotate(rows: Tensor) -> Tensor:
    """Return each row (of a power of two) times the orthonormal Walsh–Hadamard matrix, which is its
    own inverse.

    Example:
        >>> rotate(torch.tensor([[1.0, 0.0, 0.0, 0.0]])).tolist()
        [[0.5, 0.5, 0.5, 0.5]]
    """
    size = rows.shape[1]
    out: Tensor = rows * size**-0.5  # first, so that sums do not overflow before their scale comes
    width = 1
    while width < size:
        pairs = out.view(-1, 2, width)
        out = torch.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), 1)
        width *= 2
    return out.view(rows.shape)


def _rotated(core: Tensor, n: int, block: int) -> Tensor:
    """Rotate whole blocks, and the last one in its own size."""
    full = n // block * block
    parts = ((core[:full], block), (core[full:], _tail(n, block)))
    return torch.cat(
        [rotate(part.view(-1, size)).view(-1) for part, size in parts if size and part.numel()]
        or [core]
    )


def _tail(n: int, block: int) -> int:
    """Return the values of the last block, filled up to a power of two; 0 where all are whole."""
    left = n % block
    return 1 << (left - 1).bit_length() if left else 0


def _scales(n: int, block: int) -> tuple[float, float]:
    """Return what a whole block is multiplied by, and the last one."""
    return block**-0.5, (_tail(n, block) or 1) ** -0.5


def _as_numbers(signs: Tensor, like: Tensor) -> Tensor:
    """Return signs as ±1, of the dtype and on the device of values."""
    return reference.unpack(signs.to(like.device), like.numel(), 1).to(like.dtype).mul_(-2).add_(1)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in native.KINDS else dtype
