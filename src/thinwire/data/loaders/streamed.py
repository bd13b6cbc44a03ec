"""Make batches of a packed set on another machine: rows in the order of `striped`, with shards
fetched ahead.

A shard's windows lie side by side, and in each epoch they begin at another of its first tokens, so
what is left over at a shard's end is not always the same. As with `Batches`, a batch is a function
of the step, and what the ranks read together is the same in any world.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thinwire.data.loaders.order import STRIPES, Reader, striped
from thinwire.data.loaders.permutation import mixed
from thinwire.data.loaders.sets import SetReader, windows_of
from thinwire.data.loaders.workers import Workers
from thinwire.errors import DataError

AHEAD_STEPS = 32
FETCHERS = 4
PLANNED_STEPS = 64


@dataclass(frozen=True)
class Block:
    """The rows of several steps, each as shard and first token, and the shards in the order of
    use."""

    rows: dict[int, list[tuple[int, int]]]
    shards: list[int]


class Streamed:
    """Windows of a packed set, by step number; each rank has its own.

    Args:
        source: the set.
        who: this rank, its batch and its world.
        length: tokens to a row.
        overlap: tokens that a window shares with the next one of its shard: 1 where the last of a
            row is only ever a target.
        seed: another seed, another order.
        stripes: see `striped`.
        ahead: steps whose shards are fetched before they are asked for.

    Raises:
        ValueError: an overlap that is none.
        DataError: shards shorter than a row, or fewer windows than one step reads.
    """

    def __init__(
        self,
        source: SetReader,
        who: Reader,
        *,
        length: int,
        overlap: int = 0,
        seed: int = 0,
        stripes: int = STRIPES,
        ahead: int = AHEAD_STEPS,
    ) -> None:
        if not 0 <= overlap < length:
            raise ValueError(
                f"Streamed(length={length}, overlap={overlap}): a window shares 0 to {length - 1} "
                "tokens with the next"
            )
        self.length, self.stride, self.seed, self.ahead = length, length - overlap, seed, ahead
        self.source, self.who = source, who
        # Windows of each shard; the order is drawn over all windows of all shards.
        shards = source.set.train
        counts = list(windows_of(shards, length, self.stride))
        if sum(counts) < who.world * who.batch:
            raise DataError(
                f"a step needs {who.world * who.batch} different windows of {length} tokens, and "
                f"the {len(shards)} shards of "
                f"{source.location!r} hold {sum(counts)}; take a smaller batch, a shorter context "
                "or "
                "larger shards"
            )
        self.order = striped.over(counts, seed, stripes)
        self._begins = np.cumsum([0, *counts])
        # Tokens that a shard has beyond its windows: they may begin that much later.
        self._spare = np.array(
            [
                shard.tokens - (count - 1) * self.stride - length if count else 0
                for shard, count in zip(shards, counts, strict=True)
            ]
        )
        self._key = int(mixed(np.array([seed]))[0])
        self._workers = Workers(FETCHERS, "thinwire-fetch")
        self._coming: dict[int, Future[NDArray[Any]]] = {}  # by shard
        self._open: dict[int, NDArray[Any]] = {}  # those that have come and were used
        self._blocks: dict[int, Block] = {}

    def at(self, step: int) -> Tensor:
        """Return the batch of this rank at `step`, whatever was read before.

        Returns:
            (batch, length) int64, the caller's own.

        Raises:
            ValueError: a step below 0, or before the origin.
            DataError: a shard cannot be had, or is not what the set's index says.
        """
        self.who.first(step)  # refuses a step before the origin
        self._look_ahead(step)
        rows = self._blocks[step // PLANNED_STEPS].rows[step]
        is_open, length = self._open, self.length
        each = [
            (is_open[shard] if shard in is_open else self._take(shard))[begin : begin + length]
            for shard, begin in rows
        ]
        return torch.from_numpy(
            np.concatenate(each).astype(np.int64).reshape(len(rows), length)
        )  # one cast for all: a row's costs as much

    def close(self) -> None:
        """Fetch nothing more; threads that wait for a shard are released."""
        self._workers.close()

    def _look_ahead(self, step: int) -> None:
        """Fetch the shards of this step and of the next ones, and drop all others."""
        blocks = range(step // PLANNED_STEPS, (step + self.ahead) // PLANNED_STEPS + 1)
        if all(block in self._blocks for block in blocks) and len(self._blocks) == len(blocks):
            return
        self._blocks = {block: self._blocks.get(block) or self._block(block) for block in blocks}
        needed = dict.fromkeys(shard for block in self._blocks.values() for shard in block.shards)
        self._open = {shard: ids for shard, ids in self._open.items() if shard in needed}
        self._coming = {shard: future for shard, future in self._coming.items() if shard in needed}
        for shard in needed:
            if shard not in self._open and shard not in self._coming:
                self._request(shard)

    def _block(self, block: int) -> Block:
        """Compute the rows of several steps at once."""
        # 1. Which windows: rows of the steps, through the order, to shard and window number.
        first = max(self.who.origin[0], block * PLANNED_STEPS)
        rows = self.order.steps(first, (block + 1) * PLANNED_STEPS - first, self.who)
        samples = self.order.of(rows.flatten()).numpy()
        shards = np.searchsorted(self._begins, samples, side="right") - 1
        # 2. Each epoch and shard begin at another of the tokens left over.
        moved = mixed(mixed(rows.flatten().numpy() // self.order.size ^ self._key) ^ shards) % (
            self._spare[shards] + 1
        )
        begins = (samples - self._begins[shards]) * self.stride + moved
        # 3. Pairs of each step, and the shards in the order of their first use.
        pairs = list(zip(shards.tolist(), begins.tolist(), strict=True))
        batch = self.who.batch
        return Block(
            {first + at: pairs[at * batch : (at + 1) * batch] for at in range(len(rows))},
            list(dict.fromkeys(shards.tolist())),
        )

    def _request(self, shard: int) -> None:
        self._coming[shard] = self._workers.submit(self.source.ids, self.source.set.train[shard])

    def _take(self, shard: int) -> NDArray[Any]:
        """Return a requested shard; if fetching it ahead failed, fetch it again."""
        coming = self._coming.get(shard)
        if coming is None or (coming.done() and coming.exception() is not None):
            self._request(shard)
        shard_tokens = self._open[shard] = self._workers.result(self._coming.pop(shard))
        return shard_tokens
