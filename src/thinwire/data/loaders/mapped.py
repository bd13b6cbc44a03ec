"""Map shards of integers on disk into one range of addresses, as one tensor.

So a window that lies across two shards is read like any other, and a batch is one gather. Nothing
is read before it is used; ranks of a host share the pages; a write stays in its process.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHARD_TOKENS = (
    1 << 24
)  # 64 MiB: a whole number of pages on any machine, so that the next shard follows it without a gap
PAGE_TOKENS = mmap.PAGESIZE // 4
MAP_FIXED = 0x10  # on Linux and the BSDs; Python's mmap does not offer it


def mapped(paths: Sequence[Path], tokens: int) -> Tensor:
    """Return the int32 values of several files, one after the other, as one tensor (tokens,).

    Args:
        paths: each as long as a whole number of pages, but for the last one.
        tokens: how many they hold together; the caller knows that they do.

    Raises:
        OSError: a file cannot be opened or mapped.
        ValueError: a file that is not the last ends within a page, or the files are shorter than
            they should be.
    """
    if not tokens:
        return torch.empty(0, dtype=torch.int32)
    # All but the last file must end on a page: the next one is mapped right after it.
    sizes = [path.stat().st_size for path in paths]
    if any(size % mmap.PAGESIZE for size in sizes[:-1]) or sum(sizes) < 4 * tokens:
        raise ValueError(
            f"{len(paths)} files of {sizes} bytes cannot be mapped as {tokens} tokens in a row"
        )
    # One range of addresses for all, given back with the tensor; then each file is mapped over it.
    free = mmap.mmap(-1, sum(sizes), flags=mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0))
    base = ctypes.addressof(ctypes.c_char.from_buffer(free))
    for path, size, begin in zip(paths, sizes, np.cumsum([0, *sizes]).tolist(), strict=False):
        if size:
            _put(path, base + begin, size)
    return torch.frombuffer(free, dtype=torch.int32, count=tokens)


def _put(path: Path, address: int, size: int) -> None:
    # Python's mmap cannot choose an address; MAP_FIXED replaces that part of the range. Private: a
    # write stays in its process.
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ]
    with path.open("rb") as file:
        if (
            libc.mmap(
                address,
                size,
                mmap.PROT_READ | mmap.PROT_WRITE,
                mmap.MAP_PRIVATE | MAP_FIXED,
                file.fileno(),
                0,
            )
            != address
        ):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))


def in_shards(
    arrays: Iterable[NDArray[np.int32]], tokens: int
) -> Iterator[Iterator[NDArray[np.int32]]]:
    """Cut arrays into shards of `tokens` values: one iterator of arrays per shard, each to be used
    up before the next.

    Example:
        >>> pieces = (np.arange(n, dtype=np.int32) for n in (3, 4))
        >>> [[each.tolist() for each in shard] for shard in in_shards(pieces, 5)]
        [[[0, 1, 2], [0, 1]], [[2, 3]]]
    """
    # What a shard did not use of an array waits for the next one.
    pending: list[NDArray[np.int32]] = []
    source = iter(arrays)

    def shard() -> Iterator[NDArray[np.int32]]:
        free = tokens
        while free:
            ids = pending.pop() if pending else next(source, None)
            if ids is None:
                return
            if len(ids) > free:
                pending.append(ids[free:])
            yield ids[:free]
            free -= min(free, len(ids))

    # A shard begins only if something is left, so that none is empty.
    while True:
        if not pending:
            ids = next((each for each in source if len(each)), None)
            if ids is None:
                return
            pending.append(ids)
        yield shard()
