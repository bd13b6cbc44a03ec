"""Batches as a function of the step: nothing to save, nothing to replay, nothing to shard.

A corpus of n bytes has N = n - context windows, one from every start. Window number g of the run, counted through steps, then
ranks, then rows, begins at place pi(g mod N), where pi is a pseudo-random permutation keyed by (seed, g div N):

    g = (step · world + rank) · batch + row

Three things follow. A run resumes from its step number. No window comes twice, on any rank, until all N have come. And what
the ranks read together in one step depends on world · batch alone: two ranks of 16 rows read what one rank of 32 would.
pi is a Feistel network of four rounds, walked until it lands inside N (Black & Rogaway 2002, "Ciphers with arbitrary finite domains").
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

ROUNDS = 4


class Batches:
    """Random windows of a corpus of bytes, each rank's own, by step number.

    Args:
        corpus: the text; a token is a byte.
        context: tokens to a row.
        batch: rows to a step, on this rank.
        seed: another seed, another order.
        rank: this process, from 0.
        world: how many processes share the steps.

    Raises:
        ValueError: a size below 1, a rank outside the world, or a corpus with fewer windows than one step reads.

    Example:
        >>> batches = Batches(b"to be, or not to be", context=4, batch=2)
        >>> tokens, targets = batches.at(step=7)
        >>> tokens.shape, bool((tokens[:, 1:] == targets[:, :-1]).all())
        (torch.Size([2, 4]), True)
    """

    def __init__(self, corpus: bytes, *, context: int, batch: int, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        for name, size in {"context": context, "batch": batch, "world": world}.items():
            if size < 1:
                raise ValueError(f"Batches({name}={size}): a step reads at least 1 of it; take {name}=1 or more")
        if not 0 <= rank < world:
            raise ValueError(f"Batches(rank={rank}, world={world}): ranks count from 0 to {world - 1}; give this process's own")
        self.starts = windows_in(corpus, context)
        if world * batch > self.starts:
            raise ValueError(
                f"Batches(batch={batch}, world={world}): a step needs {world * batch} different windows, but {len(corpus)} bytes hold "
                f"{self.starts} of context {context}; take a smaller batch or a longer corpus"
            )
        self.context, self.batch, self.seed, self.rank, self.world = context, batch, seed, rank, world
        self.corpus = byte_tensor(corpus)

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of this rank at `step`, whatever was read before.

        Returns:
            tokens and targets, both (batch, context) int64; a target is the byte after its token.

        Raises:
            ValueError: a step below 0.
        """
        if step < 0:
            raise ValueError(f"Batches.at(step={step}): steps count from 0; give the number of steps already taken")
        first = (step * self.world + self.rank) * self.batch
        epoch, number = divmod(first, self.starts)
        row = torch.arange(number, number + self.batch)
        # A batch may run over into the next epoch, never beyond it: a step has no more rows than there are starts.
        here, after = (permuted(row % self.starts, self.starts, f"{self.seed}/{epoch + more}") for more in (0, 1))
        return cut(self.corpus, torch.where(row < self.starts, here, after), self.context)


def validation_windows(corpus: bytes, *, context: int, windows: int) -> tuple[Tensor, Tensor]:
    """The same windows every time, spread evenly from the first byte to the last, none overlapping another.

    Args:
        corpus: the text; a token is a byte.
        context: tokens to a row.
        windows: how many rows.

    Returns:
        tokens and targets, both (windows, context) int64; a target is the byte after its token.

    Raises:
        ValueError: a size below 1, or a corpus too short for so many.

    Example:
        >>> tokens, targets = validation_windows(b"0123456789", context=3, windows=2)
        >>> [bytes(row.tolist()) for row in tokens], [bytes(row.tolist()) for row in targets]
        ([b'012', b'678'], [b'123', b'789'])
    """
    if context < 1 or windows < 1:
        raise ValueError(f"validation_windows(context={context}, windows={windows}): each must be at least 1")
    starts = windows_in(corpus, context)
    if windows * context > len(corpus) - 1:
        raise ValueError(
            f"validation_windows(windows={windows}): as many of context {context} need {windows * context + 1} bytes, but the corpus has "
            f"{len(corpus)}; take windows={(len(corpus) - 1) // context} or fewer"
        )
    return cut(byte_tensor(corpus), torch.arange(windows) * (starts - 1) // max(windows - 1, 1), context)


def windows_in(corpus: bytes, context: int) -> int:
    """How many windows of `context` tokens and one more byte, the last target, the corpus holds.

    Example:
        >>> windows_in(b"thinwire", context=7)
        1
    """
    if len(corpus) < context + 1:
        raise ValueError(
            f"a row of context={context} takes {context + 1} bytes, the last one as a target, but the corpus has {len(corpus)}; "
            f"take a longer corpus or a shorter context"
        )
    return len(corpus) - context


def byte_tensor(corpus: bytes) -> Tensor:
    """The corpus as a tensor (bytes,) uint8 of its own."""
    return torch.frombuffer(bytearray(corpus), dtype=torch.uint8)


def cut(corpus: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """Rows of `corpus` from `starts`, and the same rows one byte later: both (rows, context) int64."""
    places = starts[:, None] + torch.arange(context)
    return corpus[places].long(), corpus[places + 1].long()


def permuted(numbers: Tensor, size: int, key: str) -> Tensor:
    """Where a permutation of 0 … size - 1, chosen by `key`, sends `numbers` (any shape, int64).

    Each round turns (left, right) into (right, left xor f(right)), which any f leaves invertible; a result outside the range
    goes through again, which leads back inside, for a permutation's cycles are closed.

    Example:
        >>> sorted(permuted(torch.arange(5), 5, "any key").tolist())
        [0, 1, 2, 3, 4]
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)  # bits in left and in right
    mask = (1 << half) - 1
    digest = hashlib.blake2b(key.encode(), digest_size=4 * ROUNDS).digest()
    keys = [int.from_bytes(digest[at : at + 4], "little") for at in range(0, len(digest), 4)]
    outside = torch.ones_like(numbers, dtype=torch.bool)
    while outside.any():
        left, right = numbers >> half, numbers & mask
        for round_key in keys:
            left, right = right, left ^ (mixed(right ^ round_key) & mask)
        numbers = torch.where(outside, left << half | right, numbers)
        outside = numbers >= size
    return numbers


def mixed(x: Tensor) -> Tensor:
    """A hash of 32 bits to 32 bits in int64, with factors small enough (found by Wellons's hash-prospector) never to overflow."""
    x = x & 0xFFFFFFFF
    x = (x ^ (x >> 16)) * 0x21F0AAAD & 0xFFFFFFFF
    x = (x ^ (x >> 15)) * 0x735A2D97 & 0xFFFFFFFF
    return x ^ (x >> 15)
