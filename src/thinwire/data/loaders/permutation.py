"""Permute 0 … n - 1 by computing, without storing: a Feistel network of four rounds.

Each round turns (left, right) into (right, left xor f(right)), which any f leaves invertible. A
result outside the range goes through the network again ("cycle walking"): the cycles of a
permutation are closed, so it comes back inside.

Black & Rogaway 2002, "Ciphers with arbitrary finite domains".
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROUNDS = 4
Ints = NDArray[np.int64]


def permuted(numbers: Tensor, size: int, key: str) -> Tensor:
    """Apply a permutation of 0 … size - 1, chosen by `key`, to `numbers` (any shape, int64).

    Each round turns (left, right) into (right, left xor f(right)), which any f leaves invertible; a
    result outside the range goes through again, which leads back inside, for a permutation's cycles
    are closed.

    Example:
        >>> sorted(permuted(torch.arange(5), 5, "any key").tolist())
        [0, 1, 2, 3, 4]
    """
    half = _half(size)
    flat = numbers.numpy().reshape(-1)
    return torch.from_numpy(_walked(flat, np.int64(size), np.int64(half), _keys(key))).view(
        numbers.shape
    )


def permuted_each(numbers: Tensor, sizes: Tensor, which: Tensor, key: str) -> Tensor:
    """Apply to each number a permutation of its own range 0 … sizes - 1, chosen by `key` and
    `which`; all (r,) int64.

    Example:
        >>> at, sizes = torch.tensor([0, 1, 0, 1]), torch.tensor([2, 2, 9, 9])
        >>> permuted_each(at, sizes, torch.tensor([0, 0, 1, 1]), "a").tolist()
        [0, 1, 4, 6]
    """
    size, shard = sizes.numpy(), mixed(which.numpy() + 1)
    half = np.maximum(1, (np.frexp(size - 1)[1] + 1) // 2).astype(
        np.int64
    )  # as `_half`: frexp's exponent is the bit length
    return torch.from_numpy(
        _walked(numbers.numpy(), size, half, [mixed(shard ^ each) for each in _keys(key)])
    )


def _half(size: int) -> int:
    """Return the bits of each half."""
    return max(1, ((size - 1).bit_length() + 1) // 2)


@functools.lru_cache(maxsize=64)
def _keys(key: str) -> list[np.uint32]:
    return list(
        np.frombuffer(hashlib.blake2b(key.encode(), digest_size=4 * ROUNDS).digest(), dtype="<u4")
    )


def _walked(numbers: Ints, size: Any, half: Any, keys: Sequence[Any]) -> Ints:
    """Pass numbers through the network until all are inside; numbers (r,), the rest (r,) or one for
    all."""
    # All numbers go through once; those that came out beyond the range go again, and fewer each
    # time.
    room = ((np.int64(1) << half) - 1).astype(np.uint32)
    out, outside = numbers.copy(), np.arange(len(numbers))
    while len(outside):
        bits, end, mask, *round_keys = (
            each[outside] if np.ndim(each) else each for each in (half, size, room, *keys)
        )
        here = out[outside]
        left, right = (here >> bits).astype(np.uint32), here.astype(np.uint32) & mask
        for round_key in round_keys:
            left, right = right, left ^ (mixed(right ^ round_key) & mask)
        here = left.astype(np.int64) << bits | right
        out[outside] = here
        outside = outside[here >= end]
    return out


def mixed(numbers: NDArray[Any]) -> NDArray[np.uint32]:
    """Hash the last 32 bits of integers to 32 bits (Wellons's hash-prospector).

    Example:
        >>> mixed(np.array([0, 1, 1 << 32])).tolist()
        [0, 2261973619, 0]
    """
    x = numbers.astype(np.uint32)
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    x ^= x >> np.uint32(15)
    return x
