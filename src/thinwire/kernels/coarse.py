"""Call the native kernels of `natural` and `ternary`; `None` where there are none for a tensor, and
torch does it, to the same bits."""

from __future__ import annotations

import torch
from torch import Tensor

from thinwire.kernels import memory, native, reference
from thinwire.kernels.reference import Key

_NO_KEY = (0, 0)
_WIDEST = 4096  # values of a block that a kernel holds as a whole


def natural_encode(x: Tensor, key: Key | None) -> Tensor | None:
    """Encode x (n,) as n exponents and n signs, at random with a `key`, else to nearest."""
    x = x.contiguous()
    kernels = native.library(x, *native.KINDS)
    if kernels is None:
        return None
    n = x.numel()
    out = memory.empty(n + reference.packed_nbytes(n, 1), torch.uint8)
    settings = (key is not None, *(key or _NO_KEY), out.data_ptr(), torch.get_num_threads())
    kernels.lib.natural_encode(x.data_ptr(), native.KINDS[x.dtype], n, *settings)
    return out


def natural_decode(payload: Tensor, out: Tensor | None, n: int, add: bool) -> Tensor | None:
    """Decode a payload of `natural_encode`, (n,) float32; into `out` where it is given, or added to
    it."""
    return _decode("natural_decode", payload, out, n, add)


def ternary_encode(x: Tensor, block: int, scales: Tensor | None, key: Key | None) -> Tensor | None:
    """Encode x (n,) as a scale a block and five digits a byte, at random with a `key`.

    Args:
        x: values.
        block: values that share a scale.
        scales: of each block; `None` for its largest magnitude.
        key: what fixes the draws; `None` rounds to nearest.
    """
    x = x.contiguous()
    kernels = native.library(x, *native.KINDS)
    if kernels is None:
        return None
    n, held = x.numel(), None if scales is None else scales.contiguous()
    out = memory.empty(4 * -(-n // block) + -(-n // 5), torch.uint8)
    kernels.lib.ternary_encode(
        x.data_ptr(),
        native.KINDS[x.dtype],
        n,
        block,
        None if held is None else held.data_ptr(),
        key is not None,
        *(key or _NO_KEY),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def ternary_means(sizes: Tensor, n: int, squares: bool) -> tuple[Tensor, Tensor, Tensor] | None:
    """Take magnitudes in blocks (m, B), of which the first n count, over the largest of each block.

    Returns:
        The mean of each block, or of its squares (m,); and where those are not asked for, the
        magnitudes above 0.7 of it, zeros for the others (m, B), and how many they are (m,) int64.
    """
    m, block = sizes.shape
    kernels = native.library(sizes) if block <= _WIDEST else None
    if kernels is None:
        return None
    means, counts = torch.empty(m), torch.empty(m, dtype=torch.int64)
    masked = memory.empty(0 if squares else sizes.numel())
    to = (means.data_ptr(), None if squares else masked.data_ptr(), counts.data_ptr())
    settings = (n, block, squares, *to, torch.get_num_threads())
    kernels.lib.ternary_means(sizes.data_ptr(), *settings)
    return means, masked if squares else masked.view(m, block), counts


def ternary_decode(
    payload: Tensor, out: Tensor | None, n: int, block: int, add: bool
) -> Tensor | None:
    """Decode a payload of `ternary_encode`, (n,) float32; into `out` where it is given, or added to
    it."""
    return _decode("ternary_decode", payload, out, n, block, add)


def _decode(
    name: str, payload: Tensor, out: Tensor | None, n: int, *settings: int
) -> Tensor | None:
    """Call the kernel of this name, which decodes n values to `out`."""
    fits = out is None or (out.is_contiguous() and out.dtype == torch.float32)
    kernels = native.anywhere(payload) if fits and 0 < n < 2**31 else None
    if kernels is None:
        return None
    payload, out = payload.contiguous(), memory.empty(n) if out is None else out
    to = (out.data_ptr(), torch.get_num_threads())
    getattr(kernels.lib, name)(payload.data_ptr(), n, *settings, *to)
    return out
