"""Describe a bucket, spans of it and a rank's context: all ranks know these, and none travels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from thinwire.kernels import reference

Role: TypeAlias = Literal["matrix", "embedding", "vector"]
Ranks: TypeAlias = tuple[int, ...]
Grain: TypeAlias = int | Literal["part", "bucket"]
"""Where a route may cut a bucket: after every n-th element, between parts (parameters), or not at
all."""


@dataclass(frozen=True, slots=True)
class Part:
    """A parameter in a flat bucket, or this rank's shard of it: elements `begin` to `begin + numel`
    of the bucket.

    offset: the element of the whole parameter at which a shard begins.
    """

    name: str
    shape: tuple[int, ...]
    begin: int
    role: Role
    offset: int = 0

    @property
    def numel(self) -> int:
        return int(torch.Size(self.shape).numel())

    @property
    def end(self) -> int:
        return self.begin + self.numel


@dataclass(frozen=True, slots=True)
class Extent:
    """A range of one part: its elements `low` to `high`, lying at `at` in the span."""

    part: Part
    low: int
    high: int
    at: int

    @property
    def whole(self) -> bool:
        return self.low == 0 and self.high == self.part.numel

    @property
    def global_low(self) -> int:
        """Return the first element of the range, counted in the whole parameter."""
        return self.part.offset + self.low

    @property
    def global_high(self) -> int:
        """Return the end of the range, counted in the whole parameter."""
        return self.part.offset + self.high


@dataclass(frozen=True, slots=True)
class Spec:
    """A description of a bucket, or of a span of one, that every rank has; it never travels.

    Parts, or ranges of them, cover the span; only the core of a chain has values and no parts.

    Example:
        >>> parts = (Part("a", (2, 3), 0, "matrix"), Part("b", (4,), 6, "vector"))
        >>> spec = Spec(parts, begin=0, numel=10, dtype=torch.float32)
        >>> [(p.part.name, p.low, p.high, p.at) for p in spec.span(4, 9).extents()]
        [('a', 4, 6, 0), ('b', 0, 3, 2)]
    """

    parts: tuple[Part, ...]
    begin: int
    numel: int
    dtype: torch.dtype

    def __hash__(self) -> int:
        """Hash what tells most spans apart; a plan's key would else hash thousands of parts."""
        return hash((self.begin, self.numel, self.dtype, len(self.parts), *self.parts[:1]))

    @property
    def end(self) -> int:
        return self.begin + self.numel

    @property
    def work(self) -> torch.dtype:
        """Return the dtype of sums and residuals: float64 for float64, else float32."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def key(self) -> str:
        """Return a name that survives another layout: the first parameter, the element in it."""
        first = next(self.extents(), None)
        return f"{first.part.name}@{first.global_low}" if first else "empty"

    def extents(self) -> Iterator[Extent]:
        """Yield the range of each part that lies in the span, in order."""
        for part in self.parts:
            low, high = max(self.begin, part.begin), min(self.end, part.end)
            if low < high:
                yield Extent(part, low - part.begin, high - part.begin, low - self.begin)

    def span(self, begin: int, end: int) -> Spec:
        """Return the elements `begin` to `end` of the bucket (in the bucket's own counting)."""
        # Only parts that overlap: an empty span has none.
        inside = tuple(part for part in self.parts if part.begin < end and part.end > begin)
        return Spec(inside, begin, end - begin, self.dtype)

    def cut(self, ways: int, grain: Grain) -> tuple[Spec, ...]:
        """Cut the span in `ways` runs as even as the grain allows; some may be empty.

        Example:
            >>> spec = Spec((Part("a", (10,), 0, "vector"),), 0, 10, torch.float32)
            >>> [s.numel for s in spec.cut(3, grain=4)]
            [4, 4, 2]
        """
        if grain == "bucket":
            # All of it in the first run.
            marks = [self.begin] + [self.end] * ways
        elif grain == "part":
            # Each mark is the end of a part that is nearest to an even division.
            ends = [self.begin] + [
                self.begin + extent.at + extent.high - extent.low for extent in self.extents()
            ]
            marks = [
                min(ends, key=lambda end: (abs(end - self.begin - i * self.numel / ways), end))
                for i in range(ways)
            ] + [self.end]
        else:
            # Even in blocks of `grain` elements; the last block may be shorter.
            blocks = -(-self.numel // grain)
            marks = [
                min(self.begin + (i * blocks + ways - 1) // ways * grain, self.end)
                for i in range(ways + 1)
            ]
        return tuple(self.span(low, high) for low, high in pairwise(marks))


@dataclass(frozen=True, slots=True)
class RankContext:
    """A rank, its group and the step, which key every random draw.

    Choose (indices, signs, starting points) with `generator`; round with `random_bits` or `noise`,
    one number a value, which the kernels draw too. A table that depends on no run uses a generator
    of a fixed seed.

    `group` are the ranks that take part, ascending; `key` tells apart the hops of one flight.
    """

    rank: int
    group: Ranks
    step: int
    seed: int
    key: str = ""

    @property
    def world(self) -> int:
        return len(self.group)

    @property
    def group_rank(self) -> int:
        return self.group.index(self.rank)

    @property
    def others(self) -> Ranks:
        """Return the other ranks in the order of a phased exchange.

        Round k goes to the k-th rank after this one.
        """
        return self.group[self.group_rank + 1 :] + self.group[: self.group_rank]

    def child(self, key: str) -> RankContext:
        return replace(self, key=f"{self.key}/{key}")

    def generator(self, spec: Spec, *, shared: bool) -> torch.Generator:
        """Return a CPU generator keyed by (seed, step, key, span) and, unless `shared`, by rank.

        It draws the same on every machine.
        """
        return torch.Generator().manual_seed(
            int.from_bytes(self._digest(spec, "*" if shared else str(self.rank)), "little") >> 1
        )

    def rng_key(self, spec: Spec) -> tuple[int, int]:
        """Return the key of `random_bits`, of (seed, step, key, span, rank), for a kernel that
        draws by itself."""
        # The text is part of what keys the draws: another one would change payloads.
        digest = self._digest(spec, f"lots of {self.rank}")
        return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")

    def random_bits(self, spec: Spec) -> Tensor:
        """Draw 16 bits a value, this rank's for rounding: (spec.numel,) int64 on the CPU."""
        return reference.random_bits(spec.numel, self.rng_key(spec))

    def noise(self, spec: Spec) -> Tensor:
        """Draw `random_bits` as numbers in (0, 1): (spec.numel,) float32 on the CPU."""
        return reference.noise(spec.numel, self.rng_key(spec))

    def _digest(self, spec: Spec, who: str) -> bytes:
        return hashlib.blake2b(
            f"{self.seed}/{self.step}/{self.key}/{spec.key}/{who}".encode(), digest_size=8
        ).digest()
