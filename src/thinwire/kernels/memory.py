"""Memory for what kernels write: large tensors in huge pages, where the system lends them when asked.

The first write to fresh memory makes the system find and clear a page, 4 KiB at a time: for 64 MiB that takes 16,384 faults and six times
as long as a copy. Tensors of tens of megabytes are fresh at each step, since malloc gives such back to the system. In pages of 2 MiB there
are 32 faults.
"""

from __future__ import annotations

import ctypes
import mmap
from functools import cache

import torch
from torch import Tensor

LARGE = 8 << 20  # bytes from which it is worth a system call


def empty(n: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """`torch.empty(n)`, on a CPU in huge pages where it is large and they are to be had."""
    out = torch.empty(n, dtype=dtype, device=device)
    if out.nbytes >= LARGE and out.device.type == "cpu":
        low, high = -(-out.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE, (out.data_ptr() + out.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        _advise(low, high - low)
    return out


@cache
def _madvise() -> ctypes._NamedFuncPointer | None:
    if not hasattr(mmap, "MADV_HUGEPAGE"):  # not Linux
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


def _advise(at: int, nbytes: int) -> None:
    function = _madvise()
    if function is not None:
        function(at, nbytes, mmap.MADV_HUGEPAGE)  # a hint: where it is refused, pages are small
