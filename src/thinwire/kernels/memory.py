"""Memory for what kernels write: large tensors come from a pool, and go back to it when nothing
refers to them any more.

The first write to fresh memory makes the system find and clear a page, 4 KiB at a time: for 64 MiB
that takes 16,384 faults and six times as long as a copy. malloc gives tensors of tens of megabytes
back to the system, so without a pool they are fresh at each step. Here they are pages of 2 MiB
where the system lends those, and are kept, up to 512 MiB of them, for the next tensor of their
size.
"""

from __future__ import annotations

import mmap
import weakref
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LARGE = 1 << 20  # bytes from which a tensor comes from the pool
KEPT = 512 << 20  # bytes that may lie in it unused
_PAGE = 2 << 20

_NUMPY = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.bfloat16: np.int16,
    torch.uint8: np.uint8,
    torch.int64: np.int64,
}


class Pool:
    """Regions of memory that nothing uses, by size. Taking and giving are single operations on
    lists, so any thread may do either."""

    def __init__(self) -> None:
        self._free: defaultdict[int, list[mmap.mmap]] = defaultdict(list)

    def take(self, n: int, dtype: torch.dtype) -> Tensor:
        """n values, whatever they are."""
        size = -(-n * dtype.itemsize // _PAGE) * _PAGE
        try:
            region = self._free[size].pop()
        except IndexError:
            region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
                region.madvise(mmap.MADV_HUGEPAGE)  # a hint
        array = np.frombuffer(region, _NUMPY[dtype], n)
        weakref.finalize(array, self._give, size, region).atexit = False
        return torch.from_numpy(array).view(
            dtype
        )  # which holds the array as long as any view of the tensor lives

    def clear(self) -> None:
        """Give what nothing uses back to the system."""
        for regions in list(self._free.values()):
            regions.clear()

    def _give(self, size: int, region: mmap.mmap) -> None:
        if sum(size * len(regions) for size, regions in list(self._free.items())) + size <= KEPT:
            self._free[size].append(region)


_POOL = Pool()


def release() -> None:
    """Give the memory that lies in the pool unused back to the system."""
    _POOL.clear()


def empty(n: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """`torch.empty(n)`; on a CPU, where it is large, from the pool."""
    if n * dtype.itemsize < LARGE or torch.device(device).type != "cpu" or dtype not in _NUMPY:
        return torch.empty(n, dtype=dtype, device=device)
    return _POOL.take(n, dtype)


def empty_like(x: Tensor) -> Tensor:
    """`empty` for as many values as a flat tensor has, of its dtype, on its device."""
    return empty(x.numel(), x.dtype, x.device)


def cat(parts: Sequence[Tensor]) -> Tensor:
    """`torch.cat` of flat tensors of one dtype."""
    if len(parts) == 1:
        return parts[0]
    total = sum(map(Tensor.numel, parts))
    return torch.cat(list(parts), out=empty(total, parts[0].dtype, parts[0].device))
