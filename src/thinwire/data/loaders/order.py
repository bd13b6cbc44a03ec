"""Compute the order of samples from their number alone, so that no order is saved, replayed or
sent.

Row g of a run is counted through steps, then ranks, then rows of a batch. It is sample pi(g mod n)
of the n there are, and pi, keyed by (seed, g div n), is a permutation of 0 … n - 1. So no sample
comes twice until all have come; a run goes on from the number of rows that were read; and it may do
so with another world or batch, for both only say who takes which rows.

    scattered    pi is a Feistel network: any sample may follow any other            data in memory,
                 or mapped from a disk
    striped      pi goes through shards, in some sixty places at once                data that must
                 be fetched, shard by shard

Under `striped`, the rows of a step are dealt by their place, not by their number: each rank stays
in its own part of the shards, and a host fetches its share of them. What ranks read together is the
same whoever reads it.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thinwire.data.loaders.permutation import permuted, permuted_each

BLOCK = (
    4096  # rows that are put in order at once: a call for a few costs as much as one for hundreds
)
STRIPES = 64


@dataclass(frozen=True)
class Reader:
    """The rows of a run that a rank takes at each step.

    Args:
        batch: rows to a step, on this rank.
        rank: this process, from 0.
        world: how many processes share the steps.
        origin: a step, and the rows that all ranks together had read before it: where another world
            or batch size takes over.

    Raises:
        ValueError: a size below 1, or a rank outside the world.

    Example:
        >>> reader = Reader(batch=2, rank=1, world=3)
        >>> reader.first(step=10)
        60
        >>> reader.resized(step=10, batch=5, world=1, rank=0).first(step=11)
        65
    """

    batch: int
    rank: int = 0
    world: int = 1
    origin: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        for name in ("batch", "world"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name}={getattr(self, name)}: there must be at least 1 of it; take {name}=1 "
                    "or more"
                )
        if not 0 <= self.rank < self.world:
            raise ValueError(
                f"rank={self.rank}, world={self.world}: ranks count from 0 to {self.world - 1}; "
                "give this process's own"
            )
        if min(self.origin) < 0:
            raise ValueError(f"origin={self.origin}: a step and a number of rows, neither below 0")

    def first(self, step: int) -> int:
        """Return the number of rows that all ranks have read before `step`.

        Raises:
            ValueError: a step below 0, or before the origin.
        """
        since, rows = self.origin
        if step < since:
            raise ValueError(
                f"step={step}: steps count from {since}; give the number of steps already taken"
            )
        return rows + (step - since) * self.world * self.batch

    def resized(self, step: int, *, batch: int, rank: int, world: int) -> Reader:
        """Return the reader that continues before `step` with another world or batch: no row is
        lost or read twice."""
        return Reader(batch, rank, world, (step, self.first(step)))


@dataclass(frozen=True)
class Order(ABC):
    """The samples of a run, by row.

    Args:
        size: how many samples there are.
        seed: another seed, another order.
    """

    size: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(
                f"{type(self).__name__}(size={self.size}): there is nothing to put in order; give "
                "at least one sample"
            )

    @abstractmethod
    def epoch(self, number: int, rows: Tensor) -> Tensor:
        """Return the samples of some rows of an epoch: both (r,) int64, rows below `size`."""

    @abstractmethod
    def dealt(self, rows: Tensor) -> Tensor:
        """Return the keys (r,) int64 by which the rows of a step in one epoch are sorted and given
        to ranks."""

    def of(self, rows: Tensor) -> Tensor:
        """Return the samples of some rows of a run: both (r,) int64.

        Example:
            >>> sorted(scattered(5).of(torch.arange(5, 10)).tolist())
            [0, 1, 2, 3, 4]
        """
        epochs = rows // self.size
        out = torch.empty_like(rows)
        for number in epochs.unique().tolist():
            here = epochs == number
            out[here] = self.epoch(number, rows[here] % self.size)
        return out

    def rows(self, step: int, reader: Reader) -> Tensor:
        """Return the rows that a rank takes at a step, by their number in the run: (batch,) int64.

        Raises:
            ValueError: the step is before the reader's origin.
        """
        first, begin = reader.first(step), reader.rank * reader.batch
        rows = torch.arange(first, first + reader.world * reader.batch)
        if reader.world > 1:
            parts = [
                rows[rows // self.size == number]
                for number in range(first // self.size, int(rows[-1]) // self.size + 1)
            ]
            rows = torch.cat(
                [part[self.dealt(part % self.size).argsort(stable=True)] for part in parts]
            )
        return rows[begin : begin + reader.batch]

    def at(self, step: int, reader: Reader) -> Tensor:
        """Return the samples of a rank at a step: (batch,) int64.

        Raises:
            ValueError: the step is before the reader's origin.

        Example:
            >>> order = scattered(100, seed=7)
            >>> ranks = [order.at(3, Reader(batch=2, rank=rank, world=2)) for rank in (0, 1)]
            >>> torch.cat(ranks).tolist() == order.at(3, Reader(batch=4)).tolist()
            True
        """
        return self.of(self.rows(step, reader))

    def steps(self, step: int, count: int, reader: Reader) -> Tensor:
        """Return the rows that a rank takes at each of several steps: (count, batch) int64."""
        return torch.stack([self.rows(each, reader) for each in range(step, step + count)])


@dataclass(frozen=True)
class scattered(Order):
    """An order in which any sample may follow any other: a permutation by a Feistel network.

    Args:
        size: how many samples there are.
        seed: another seed, another order.

    Raises:
        ValueError: a size below 1.

    Example:
        >>> scattered(8, seed=1).of(torch.arange(8)).tolist()
        [6, 7, 4, 0, 3, 2, 5, 1]

    Black & Rogaway 2002, "Ciphers with arbitrary finite domains".
    """

    def epoch(self, number: int, rows: Tensor) -> Tensor:
        return permuted(rows, self.size, f"{self.seed}/{number}")

    def dealt(self, rows: Tensor) -> Tensor:
        return rows

    def at(self, step: int, reader: Reader) -> Tensor:
        first = reader.first(step) + reader.rank * reader.batch
        if reader.world * reader.batch > BLOCK:  # most of a block would be others'
            return self.of(torch.arange(first, first + reader.batch))
        block, begin = divmod(first, BLOCK)
        rows = _block(self, block)
        if begin + reader.batch > BLOCK:
            rows = torch.cat((rows, _block(self, block + 1)))
        return rows[begin : begin + reader.batch].clone()


@dataclass(frozen=True)
class striped(Order):
    """An order that reads shard by shard, at `stripes` positions at once.

    In each epoch the shards are put in another order and, in it, their samples one after the other
    in a line of n. The line is cut in C stripes (a power of two) and row q reads stripe b(q mod C)
    at offset q div C, where b turns the bits of a number round: so the rows of a step are spread
    evenly over the line, and dealt by their place on it, each rank gets a run of the line that
    moves little from step to step. Within a shard samples come in an order of their own.

    Each rank then reads about 1/world of the shards, and exactly that where world * batch is a
    power of two. C shards are open at a time, C/world on a rank; a batch mixes rows of as many
    shards as it has rows, up to that.

    Args:
        size: how many samples there are.
        seed: another seed, another order.
        shards: the samples of each shard, which sum to `size`.
        stripes: C, at least the largest world that will ever read; fewer mix less and fetch less
            ahead.

    Raises:
        ValueError: a size below 1, shards that do not sum to it, or stripes that are no power of
            two.

    Example:
        >>> order = striped.over([4, 4, 4, 4], seed=1, stripes=4)
        >>> def shards(rank):
        ...     samples = [order.at(step, Reader(2, rank, 2)) for step in range(4)]
        ...     return sorted({int(sample) // 4 for sample in torch.cat(samples)})
        >>> [shards(0), shards(1)]
        [[1, 2], [0, 3]]
    """

    shards: tuple[int, ...] = ()
    stripes: int = STRIPES

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum(self.shards) != self.size or min(self.shards) < 0:
            raise ValueError(
                f"striped: the shards hold {sum(self.shards)} samples, not {self.size}; give how "
                "many each shard holds"
            )
        if self.stripes < 1 or self.stripes & (self.stripes - 1):
            raise ValueError(
                f"striped(stripes={self.stripes}): bits are turned round, so it must be a power "
                f"of two; take {STRIPES}"
            )

    @classmethod
    def over(cls, shards: Sequence[int], seed: int = 0, stripes: int = STRIPES) -> striped:
        """Return the order of shards with the given numbers of samples."""
        return cls(sum(shards), seed, tuple(shards), stripes)

    def epoch(self, number: int, rows: Tensor) -> Tensor:
        ends, chosen, begins, sizes = _line(self.shards, f"{self.seed}/{number}")
        position = self._positions(rows)
        slot = torch.searchsorted(ends, position, right=True)
        shard = chosen[slot]
        offset = position - torch.where(slot > 0, ends[slot - 1], 0)
        return begins[shard] + permuted_each(
            offset, sizes[shard], shard, f"{self.seed}/{number}/shards"
        )

    def dealt(self, rows: Tensor) -> Tensor:
        return self._positions(rows)

    def steps(self, step: int, count: int, reader: Reader) -> Tensor:
        each = reader.world * reader.batch
        first = reader.first(step)
        if (
            first // self.size != (first + count * each - 1) // self.size
        ):  # an epoch ends among them
            return super().steps(step, count, reader)
        rows = torch.arange(first, first + count * each).view(count, each)
        if reader.world > 1:
            rows = rows.gather(1, self.dealt(rows % self.size).argsort(dim=1, stable=True))
        return rows[:, reader.rank * reader.batch : (reader.rank + 1) * reader.batch].contiguous()

    def shards_ahead(self, step: int, steps: int, reader: Reader) -> list[int]:
        """List the shards that a rank reads in the next steps, each once, in the order of first
        use."""
        bounds = torch.tensor(self.shards).cumsum(0)
        seen: dict[int, None] = {}
        for each in range(step, step + steps):
            seen.update(
                dict.fromkeys(
                    torch.searchsorted(bounds, self.at(each, reader), right=True).tolist()
                )
            )
        return list(seen)

    def _positions(self, rows: Tensor) -> Tensor:
        begins, turned = _stripes(self.size, self.stripes)
        return begins[turned[rows % self.stripes]] + rows // self.stripes


@functools.lru_cache(maxsize=16)
def _block(order: scattered, number: int) -> Tensor:
    """Return the samples of `BLOCK` rows of a run."""
    return order.of(torch.arange(number * BLOCK, (number + 1) * BLOCK))


@functools.lru_cache(maxsize=64)
def _stripes(size: int, stripes: int) -> tuple[Tensor, Tensor]:
    """Return where each stripe begins on the line, and each number below `stripes` with its bits
    reversed."""
    bits = stripes.bit_length() - 1
    turned = torch.tensor(
        [int(f"{number:0{bits}b}"[::-1], 2) if bits else 0 for number in range(stripes)]
    )
    lengths = torch.full((stripes,), size // stripes)
    lengths[turned[: size % stripes]] += 1  # the last rows of an epoch, which do not go round
    return lengths.cumsum(0) - lengths, turned


@functools.lru_cache(maxsize=16)
def _line(shards: tuple[int, ...], key: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the line of an epoch: where each of its shards ends and which shard it is; and by
    shard number, first samples and sizes."""
    sizes = torch.tensor(shards)
    chosen = permuted(torch.arange(len(shards)), len(shards), key)
    return sizes[chosen].cumsum(0), chosen, sizes.cumsum(0) - sizes, sizes
