"""Hash tensors where they lie, cheap enough to compare ranks now and then, on a CPU or a GPU.

A tensor's words w (of 32 bits; of 8 or 16 where its elements are) are hashed in rows of 16,384:
    row_j = sum over i of key_i · w_ji        mod 2^64, with fixed odd random keys of 64 bits
    checksum = sum over j of odd_j · row_j    mod 2^64, with odd_j mixed from j
A tensor with one changed word always has another checksum, as an odd number has an inverse. Of
several changed words in a row, differences d_i below 2^32 cancel only if sum of key_i · d_i is 0
mod 2^64: at most 1 of 2^32 draws of the keys (multilinear hashing, Lemire & Kaser 2014,
arXiv:1202.4961). The keys are public: this finds faults, not attacks.
"""

from __future__ import annotations

import functools
import hashlib
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from thinwire.engine.shards import local_of

ROW = 1 << 14
_ROWS = {"cpu": 8}  # at once: what stays in a core's cache; elsewhere enough to fill a device
_WORDS = {1: torch.int8, 2: torch.int16}


@torch.no_grad()
def checksum(tensor: Tensor) -> Tensor:
    """Hash a tensor's bits to one int64, on its own device.

    Example:
        >>> one, other = torch.zeros(5), torch.zeros(5)
        >>> other[3] = -0.0
        >>> bool(checksum(one) == checksum(one.clone())), bool(checksum(one) == checksum(other))
        (True, False)
    """
    return _checksum(_words(tensor))


@torch.no_grad()
def checksums(tensors: Iterable[Tensor]) -> list[int]:
    """Hash tensors of one device; one transfer from it for all, and few calls for small ones of one
    size.

    Example:
        >>> tensors = [torch.ones(5), torch.ones(70_000), torch.ones(5)]
        >>> checksums(tensors) == [int(checksum(tensor)) for tensor in tensors]
        True
    """
    words = [_words(tensor) for tensor in tensors]
    sums: list[Tensor] = [torch.empty(0)] * len(words)
    # 1. Those of a row or less, by size and type; larger ones by themselves.
    alike: defaultdict[tuple[int, torch.dtype], list[int]] = defaultdict(list)
    for i, each in enumerate(words):
        if 0 < each.numel() <= ROW:
            alike[each.numel(), each.dtype].append(i)
        else:
            sums[i] = _checksum(each)
    # 2. Each is a row of a matrix: its checksum is that row's product, by the key of a first row.
    for (numel, _), where in alike.items():
        at_once = max(1, _ROWS["cpu"] * ROW // numel)
        for begin in range(0, len(where), at_once):
            some = where[begin : begin + at_once]
            rows = torch.stack([words[i] for i in some])
            keys, first = _keys(rows.device)[:numel], _row_keys(0, 1, rows.device)
            for i, total in zip(some, (_products(rows, keys) * first).unbind(), strict=True):
                sums[i] = total
    return torch.stack(sums).tolist() if sums else []


def digest(tensors: Iterable[Tensor]) -> bytes:
    """Hash tensors of one device to 16 bytes for all of them, in order."""
    return hashlib.blake2b(repr(checksums(tensors)).encode(), digest_size=16).digest()


def _words(tensor: Tensor) -> Tensor:
    """See a tensor's bits as integer words: equal floats may have other bits (0.0 and -0.0), and
    NaN never equals itself."""
    flat = local_of(tensor).contiguous().view(-1)
    if not flat.numel():
        return flat.to(torch.int32)
    return flat.view(_WORDS.get(flat.dtype.itemsize, torch.int32))


def _checksum(words: Tensor) -> Tensor:
    """Hash rows of ROW words, several at once: bounded memory, as products are 8 bytes a word."""
    keys = _keys(words.device)
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    at_once = _ROWS.get(words.device.type, 1 << 10) * ROW
    for begin in range(0, words.numel(), at_once):
        part = words[begin : begin + at_once]
        whole = part.numel() // ROW * ROW
        if whole:
            rows = _products(part[:whole].view(-1, ROW), keys)
            total += (rows * _row_keys(begin // ROW, rows.numel(), rows.device)).sum()
        # The last row is shorter than the keys.
        if whole < part.numel():
            tail = _products(part[whole:].view(1, -1), keys[: part.numel() - whole])
            total += (tail * _row_keys((begin + whole) // ROW, 1, tail.device))[0]
    return total


def _products(rows: Tensor, keys: Tensor) -> Tensor:
    if rows.device.type == "cpu":
        return torch.mv(rows.to(torch.int64), keys)
    return (rows * keys).sum(1)  # CUDA has no product of integer matrices


@functools.cache
def _keys(device: torch.device) -> Tensor:
    # Made on the CPU from a fixed seed, so that all ranks have the same keys on any device. All of
    # them are odd, as only odd numbers have an inverse mod 2^64.
    random = torch.randint(
        -(1 << 62),
        1 << 62,
        (ROW,),
        generator=torch.Generator().manual_seed(0x7417),
        dtype=torch.int64,
    )
    return (random * 2 + 1).to(device)


def _row_keys(first: int, count: int, device: torch.device) -> Tensor:
    """Return an odd number for each row; they lie on no straight line."""
    # Mixed as in splitmix64: with evenly spaced keys 1, 3, 5 changes of d, -2d, d in three rows
    # would cancel.
    x = (
        torch.arange(first + 1, first + 1 + count, device=device, dtype=torch.int64)
        * 0x1E3779B97F4A7C15
    )
    x = (x ^ (x >> 29)) * 0x3F58476D1CE4E5B9
    return x | 1
