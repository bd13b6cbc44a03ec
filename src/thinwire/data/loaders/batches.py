"""Compute batches from the step number: nothing to save, to replay or to shard.

A corpus of n tokens has N = n - length + 1 windows, one from every start. Window number g of the
run, counted through steps, then ranks, then rows, begins at place pi(g mod N), where pi is a
pseudo-random permutation keyed by (seed, g div N):

    g = (step · world + rank) · batch + row

Three things follow. A run resumes from its step number. No window comes twice, on any rank, until
all N have come. And what the ranks read together in one step depends on world · batch alone: two
ranks of 16 rows read what one rank of 32 would. pi is the order `scattered` of
`thinwire.data.loaders.order`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from thinwire.data.loaders.order import Reader, scattered
from thinwire.data.loaders.permutation import permuted
from thinwire.errors import DataError

__all__ = ["Batches", "permuted", "validation_windows"]


class Batches:
    """Random windows of a corpus of tokens, by step number; each rank has its own.

    Args:
        tokens: (tokens,) of any integer type; it may be mapped into memory, for only what is read
            is touched.
        length: tokens to a row. To predict c tokens, each from those before it, takes c + 1.
        batch: rows to a step, on this rank.
        seed: another seed, another order.
        rank: this process, from 0.
        world: how many processes share the steps.
        origin: a step, and the rows that all ranks together had read before it: where another world
            or batch size takes over.

    Raises:
        ValueError: a size below 1, a rank outside the world, or tokens that are no vector of
            integers.
        DataError: a corpus with fewer windows than one step reads.

    Example:
        >>> batches = Batches(torch.arange(100), length=5, batch=2)
        >>> rows = batches.at(step=7)
        >>> rows.shape, rows.dtype, bool((rows.diff() == 1).all())
        (torch.Size([2, 5]), torch.int64, True)
    """

    def __init__(
        self,
        tokens: Tensor,
        *,
        length: int,
        batch: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        origin: tuple[int, int] = (0, 0),
    ) -> None:
        _check("Batches", tokens, length=length, batch=batch, world=world)
        self.reader = Reader(batch, rank, world, origin)
        # Windows begin anywhere; a step must not read one twice.
        self.starts = max(0, len(tokens) - length + 1)
        if world * batch > self.starts:
            raise DataError(
                f"Batches(batch={batch}, world={world}): a step needs {world * batch} different "
                f"windows, but {len(tokens)} tokens hold "
                f"{self.starts} of length {length}; take a longer text, a smaller batch or a "
                "shorter context"
            )
        self.tokens, self.length, self.batch, self.seed, self.rank, self.world = (
            tokens,
            length,
            batch,
            seed,
            rank,
            world,
        )
        self.origin, self.order = origin, scattered(self.starts, seed)

    def at(self, step: int) -> Tensor:
        """Return the batch of this rank at `step`, whatever was read before.

        Returns:
            (batch, length) int64, the caller's own.

        Raises:
            ValueError: a step below 0, or before the origin.
        """
        return _cut(self.tokens, self.order.at(step, self.reader), self.length)

    def close(self) -> None:
        """Do nothing: the tokens are in memory."""


def validation_windows(tokens: Tensor, *, length: int, windows: int) -> Tensor:
    """Return windows that are the same every time, spread evenly over all tokens, without overlap.

    Args:
        tokens: (tokens,) of any integer type.
        length: tokens to a row.
        windows: how many rows; of a shorter text, as many as fit.

    Returns:
        (windows, length) int64, with at least one row.

    Raises:
        ValueError: a size below 1, or tokens that are no vector of integers.
        DataError: the text is shorter than one window.

    Example:
        >>> validation_windows(torch.arange(10), length=4, windows=2).tolist()
        [[0, 1, 2, 3], [6, 7, 8, 9]]
        >>> len(validation_windows(torch.arange(10), length=4, windows=1000))
        2
    """
    _check("validation_windows", tokens, length=length, windows=windows)
    if len(tokens) < length:
        raise DataError(
            f"validation_windows(length={length}): the text is shorter than one window: it has "
            f"{len(tokens)} tokens, and {length} are "
            "needed; take a longer text or a shorter context"
        )
    windows = min(windows, len(tokens) // length)
    return _cut(
        tokens, torch.arange(windows) * (len(tokens) - length) // max(windows - 1, 1), length
    )


def _check(caller: str, tokens: Tensor, **sizes: int) -> None:
    if tokens.ndim != 1 or tokens.is_floating_point() or tokens.is_complex():
        raise ValueError(
            f"{caller}: tokens of shape {tuple(tokens.shape)} and type {tokens.dtype} are no "
            "vector of integers; give one"
        )
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(
                f"{caller}({name}={size}): there must be at least 1 of it; take {name}=1 or more"
            )


def _cut(tokens: Tensor, starts: Tensor, length: int) -> Tensor:
    """Return rows of `tokens` from `starts`: (rows, length) int64."""
    flat = tokens.numpy()
    every = np.lib.stride_tricks.as_strided(
        flat, (len(flat) - length + 1, length), 2 * flat.strides, writeable=False
    )
    return torch.from_numpy(every[starts.numpy()].astype(np.int64))  # a row is copied at once
