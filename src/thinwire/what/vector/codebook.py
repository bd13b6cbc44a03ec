"""Send d values at a time as the number of the
nearest of 2^b vectors.

Steps, for each parameter; vectors of d values, blocks of a root mean square s each:
    1. u = v / s; i = the nearest of the 2^b entries c (k-means, the same on every rank); with more
       stages, the same again for u - c.
    2. Sent: the numbers, b bits each, and one scale a block, a = <v, q> / <q, q>, the best there is
       for the q that the numbers name.
    3. Back: v̂ = a q.
    4. Beside the numbers each rank says, for `refresh` entries by turns, how many u fell to them
       and their sum: sums over ranks, so every rank moves the same entries to the same place: n =
       decay · n + (1 - decay) n_new, c = c + (1 - decay) n_new / n · (mean_new - c). An entry that
       nobody used starts anew beside a much used one.
b · stages / d bits a value, and 32 / block. The book itself never travels: the first one is k-means
of normal vectors, made anew by all. ||v̂ - v|| <= ||v|| for each block, whatever the values. It is
biased: use `feedback(codebook(…))`.

Source: product quantisation (Jégou, Douze & Schmid 2011), residual stages (Juang & Gray 1982),
books kept by moving averages (van den Oord et al. 2017, arXiv:1711.00937). Differs from the papers:
one book for all sub-vectors of a parameter; entries are learned a few a step, from sums that all
ranks see, so that no book is ever sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from thinwire.core import (
    Coder,
    Leaf,
    Outcome,
    Packet,
    RankContext,
    Rounds,
    Spec,
    State,
    Traits,
    check_nbytes,
)
from thinwire.errors import StrategyError
from thinwire.kernels import reference
from thinwire.what.lowrank._parts import runs

_AT_ONCE = 2**22  # distances of so many pairs at a time
_SAMPLES, _ROUNDS = 32, 16  # vectors an entry and rounds of the first k-means
_WORTH = 32  # vectors an entry below which a parameter keeps the first book


@dataclass(frozen=True)
class codebook(Coder):
    """b bits for d values by the nearest entry of a codebook that follows the data.

    Args:
        dim: d, values a vector, 1 to 32.
        bits: b, 2 to 10: a book of 2^b entries.
        stages: books one after the other, each of what the ones before it left over, 1 to 8.
        block: values that share a scale, a multiple of dim.
        refresh: entries of a book that are learned at each flight, by turns; 0 keeps the first
            book.
        decay: how much of its past an entry keeps, in [0, 1).

    Raises:
        StrategyError: an argument outside the above.

    A parameter of fewer than 32 · 2^b vectors keeps the first book, and so does a core (right of
    `>>`). A block that holds a NaN or an infinity decodes to NaN throughout and teaches nothing.

    Example:
        >>> spec = Spec((), 0, 4096, torch.float32)
        >>> codebook(8, 8).nbytes(spec)  # 512 numbers and 16 scales
        576
    """

    examples: ClassVar[tuple[str, ...]] = (
        "codebook(4, 3, refresh=0)",
        "codebook(2, 2, stages=2, block=32, refresh=4)",
        "codebook(2, 2, block=8, refresh=3)",
    )

    dim: int = 8
    bits: int = 8
    stages: int = 1
    block: int = 256
    refresh: int = 16
    decay: float = 0.9

    def __post_init__(self) -> None:
        reasons = []
        if not 1 <= self.dim <= 32:
            reasons.append(f"codebook(dim={self.dim}): a vector has 1 to 32 values")
        if not 2 <= self.bits <= 10:
            reasons.append(
                f"codebook(bits={self.bits}): choose 2 to 10; for more bits a value, a smaller "
                "dim or more stages"
            )
        if not 1 <= self.stages <= 8:
            reasons.append(f"codebook(stages={self.stages}): choose 1 to 8")
        if self.block < 1 or self.block % max(self.dim, 1):
            reasons.append(f"codebook(block={self.block}): a block is a multiple of dim={self.dim}")
        if self.refresh < 0:
            reasons.append(f"codebook(refresh={self.refresh}): a count is 0 or more")
        if not 0 <= self.decay < 1:
            reasons.append(
                f"codebook(decay={self.decay}): the share of the past that an entry keeps lies in "
                "[0, 1)"
            )
        if reasons:
            raise StrategyError(reasons)

    @cached_property
    def traits(self) -> Traits:
        return Traits(grain="part")

    @property
    def single_packet_coder(self) -> Coder | None:  # type: ignore[override]  # a coder that learns is to be driven by its rounds
        return None if self.refresh else self  # what the ranks answer decides the next book

    def init(self, spec: Spec, ctx: RankContext) -> State:
        leaves, device = {}, torch.get_default_device()
        # Every rank makes the same first book; a turn counts the steps of `refresh`.
        for name in self._learners(spec):
            book = _first(self.dim, self.bits, self.stages).to(device=device, dtype=spec.work)
            leaves[f"book/{name}"] = Leaf(book, "replicated", part=name)
            leaves[f"used/{name}"] = Leaf(
                torch.zeros(book.shape[:2], dtype=spec.work, device=device), "replicated", part=name
            )
            leaves[f"turn/{name}"] = Leaf(
                torch.zeros((), dtype=torch.int64, device="cpu"), "replicated", part=name
            )
        return State(leaves)

    def nbytes(self, spec: Spec) -> int:
        return (
            sum(sum(self._sizes(numel, spec)) for _, numel, _ in self._runs(spec))
            + self._lessons(spec) * spec.work.itemsize
        )

    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        """Encode numbers and scales, without the sums that the books learn from, for a core or a
        fixed book."""
        return self._encoded(x.to(spec.work), spec, state)[0]

    def decode(
        self, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        check_nbytes(self, payload, self.nbytes(spec) - self._lessons(spec) * spec.work.itemsize)
        out, at = torch.empty(spec.numel, dtype=spec.work, device=payload.device), 0
        for begin, numel, name in self._runs(spec):
            # Of each run: the scales, then the numbers, `stages` of them a vector.
            scales, numbers = self._sizes(numel, spec)
            rows = -(-numel // self.dim)
            encoded = (
                reference.unpack(
                    payload[at + scales : at + scales + numbers], rows * self.stages, self.bits
                )
                .long()
                .view(-1, self.stages)
            )
            # The stages' entries add up; a block's scale multiplies the sum.
            q = sum(
                stage[encoded[:, i]] for i, stage in enumerate(self._book(name, spec, state, out))
            )
            assert isinstance(q, Tensor)
            blocks = (
                reference.to_blocks(q.view(-1), self.block)
                * reference.from_bytes(payload[at : at + scales], spec.work)[:, None]
            )
            out[begin : begin + numel] = blocks.view(-1)[:numel]
            at += scales + numbers
        return out

    def rounds(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Rounds:
        if not self._lessons(spec):
            return (yield from super().rounds(x, spec, state, ctx))
        # Lessons travel behind the payload, in the same packet, and are added over the ranks; all
        # else is opened and summed as values.
        encoded, lessons = self._encoded(x.to(spec.work), spec, state)
        whole = _Taught(self, spec)
        payload = torch.cat([encoded, reference.as_bytes(lessons)])
        total = yield Packet(
            payload, Spec((), 0, spec.numel + lessons.numel(), spec.work), whole, state, ctx
        )
        # Keep the books of this round: `sent` opens the payload after the books have moved on.
        books = {name: state[f"book/{name}"].value for name in self._learners(spec)}
        was = State(
            {f"book/{name}": Leaf(book, "replicated", part=name) for name, book in books.items()}
        )
        self._learn(total[spec.numel :], spec, state)
        return Outcome(total[: spec.numel], lambda: self.decode(encoded, spec, was, ctx, ctx.rank))

    def _encoded(self, x: Tensor, spec: Spec, state: State) -> tuple[Tensor, Tensor]:
        """Return (the payload but for the lessons, the lessons: for each book and stage, sums (w,
        d) and counts (w,))."""
        parts, lessons = [torch.empty(0, dtype=torch.uint8, device=x.device)], [x.new_empty(0)]
        for begin, numel, name in self._runs(spec):
            # 1. Scale each block to a mean square of 1, by way of its largest entry: squares of
            #    tiny or huge numbers would vanish.
            blocks = reference.to_blocks(x[begin : begin + numel].contiguous(), self.block)
            largest = blocks.abs().amax(1, keepdim=True)  # amax hands NaN on
            sound = largest.isfinite() & (largest > 0)
            unit = torch.where(
                sound,
                blocks / torch.where(sound, largest, torch.ones_like(largest)),
                torch.zeros_like(blocks),
            )
            count = (
                numel - torch.arange(len(blocks), device=x.device)[:, None] * self.block
            ).clamp(max=self.block)
            rms = (unit.square().sum(1, keepdim=True) / count).sqrt()
            vectors = (unit / torch.where(sound, rms, torch.ones_like(rms))).view(-1, self.dim)[
                : -(-numel // self.dim)
            ]
            live = sound.expand(-1, self.block // self.dim).reshape(-1)[: len(vectors)]

            # 2. Each stage sends the nearest entry of its book for what the stages before left;
            #    where books learn, what each entry stood for is summed up as a lesson.
            rest, numbers = vectors.clone(), []
            book = self._book(name, spec, state, x)
            for stage in book:
                near = _nearest(rest, stage)
                if f"book/{name}" in state.leaves:
                    w = self._width
                    # w: not their turn.
                    slot = (
                        (near - int(self._window(name, state)[0]))
                        .remainder(1 << self.bits)
                        .clamp(max=w)
                    )
                    slot = torch.where(live, slot, w)
                    lessons.append(
                        x.new_zeros(w + 1, self.dim).index_add_(0, slot, rest)[:w].view(-1)
                    )
                    lessons.append(
                        x.new_zeros(w + 1).index_add_(0, slot, torch.ones_like(rest[:, 0]))[:w]
                    )
                rest = rest - stage[near]
                numbers.append(near)

            # 3. The scale of least squared error for the entries chosen.
            q = reference.to_blocks((vectors - rest).reshape(-1), self.block)
            best = (unit * q).sum(1, keepdim=True) / q.square().sum(1, keepdim=True).clamp(
                min=torch.finfo(x.dtype).tiny
            )
            scales = torch.where(largest.isfinite(), best.clamp(min=0) * largest, float("nan"))
            parts += [
                reference.as_bytes(scales.view(-1)),
                reference.pack(torch.stack(numbers, 1).view(-1), self.bits),
            ]
        return torch.cat(parts), torch.cat(lessons)

    def _learn(self, lessons: Tensor, spec: Spec, state: State) -> None:
        # Lessons that are not finite on any rank leave every book as it is: all ranks see the same
        # sum.
        at, w, sound = 0, self._width, lessons.isfinite().all()
        for name in self._learners(spec):
            old, before = state[f"book/{name}"].value, state[f"used/{name}"].value
            book, used, own = old.clone(), before.clone(), self._window(name, state).to(old.device)
            for i in range(self.stages):
                sums = lessons[at : at + w * self.dim].view(w, self.dim)
                new = lessons[at + w * self.dim : at + w * (self.dim + 1)]
                at += w * (self.dim + 1)
                # Entries move towards the mean of what they stood for, with a decaying count.
                count = self.decay * used[i, own] + (1 - self.decay) * new
                weight = ((1 - self.decay) * new / count.clamp(min=1e-12))[:, None]
                moved = book[i, own] + weight * (sums / new.clamp(min=1)[:, None] - book[i, own])
                # An entry that nobody used begins again beside one of the most used.
                idle = (new == 0) & (used[i].sum() > 0)
                donors = used[i].argsort(descending=True, stable=True)[:w]
                book[i, own] = torch.where(
                    idle[:, None], book[i, donors] + 0.05 * book[i, own], moved
                )
                used[i, own] = torch.where(idle, used[i, donors] / 2, count)
            state[f"book/{name}"].value, state[f"used/{name}"].value = (
                torch.where(sound, book, old),
                torch.where(sound, used, before),
            )
            state[f"turn/{name}"].value = state[f"turn/{name}"].value + 1

    def _window(self, name: str, state: State) -> Tensor:
        """Return the entries whose turn it is: (w,) int64."""
        return (int(state[f"turn/{name}"].value) * self._width + torch.arange(self._width)) % (
            1 << self.bits
        )

    def _book(self, name: str, spec: Spec, state: State, like: Tensor) -> Tensor:
        """Return a run's book: (stages, 2^b, d)."""
        leaf = state.leaves.get(f"book/{name}")
        return leaf.value if leaf is not None else _first(self.dim, self.bits, self.stages).to(like)

    def _runs(self, spec: Spec) -> Iterator[tuple[int, int, str]]:
        """Yield (where, how many values, whose) of each piece of the span."""
        names = [extent.part.name for extent in spec.extents()] or [""]
        for (at, rows, columns), name in zip(runs(spec), names, strict=False):
            yield at, rows * columns, name

    def _learners(self, spec: Spec) -> list[str]:
        """Return the parameters that have books of their own."""
        enough = _WORTH * (1 << self.bits) * self.dim
        return [
            p.part.name
            for p in spec.extents()
            if self.refresh and p.whole and p.part.numel >= enough
        ]

    def _lessons(self, spec: Spec) -> int:
        return len(self._learners(spec)) * self.stages * self._width * (self.dim + 1)

    @property
    def _width(self) -> int:
        return min(self.refresh, 1 << self.bits)

    def _sizes(self, numel: int, spec: Spec) -> tuple[int, int]:
        """Return the bytes of a run's scales and of its numbers."""
        return -(-numel // self.block) * spec.work.itemsize, reference.packed_nbytes(
            -(-numel // self.dim) * self.stages, self.bits
        )

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        error, info = torch.empty(spec.numel, dtype=torch.float64), torch.finfo(spec.work)
        for at, rows, columns in runs(spec):
            blocks = reference.to_blocks(x[at : at + rows * columns].double(), self.block)
            largest = blocks.abs().amax(1, keepdim=True).clamp(min=1e-300)
            # the best scale never makes a block longer
            norms = (blocks / largest).square().sum(1, keepdim=True).sqrt() * largest * (1 + 1e-5)
            norms += (norms > 1e-290) * 16 * info.smallest_normal * info.eps
            error[at : at + rows * columns] = norms.expand_as(blocks).reshape(-1)[: rows * columns]
        return error


@dataclass(frozen=True)
class _Taught(Coder):
    """A codebook's payload with what its books learn from behind it; it lives for one round and is
    never configured."""

    inner: codebook
    of: Spec

    def nbytes(self, spec: Spec) -> int:
        return self.inner.nbytes(self.of)

    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        encoded = self.inner.encode(x[: self.of.numel], self.of, state, ctx)
        return torch.cat([encoded, reference.as_bytes(x[self.of.numel :])])

    def decode(
        self, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        check_nbytes(self.inner, payload, self.nbytes(spec))
        cut = payload.numel() - (spec.numel - self.of.numel) * spec.work.itemsize
        values = self.inner.decode(payload[:cut], self.of, state, ctx, sender)
        return torch.cat([values, reference.from_bytes(payload[cut:], spec.work)])


def _nearest(x: Tensor, book: Tensor) -> Tensor:
    """Return the number of the nearest entry (k, d) of each row of x (m, d): (m,) int64."""
    half = book.square().sum(1) / 2
    return torch.cat(
        [(rows @ book.T - half).argmax(1) for rows in x.split(max(1, _AT_ONCE // len(book)))]
    )


@lru_cache(maxsize=32)
def _first(dim: int, bits: int, stages: int) -> Tensor:
    """Fit k-means to normal vectors, and to what it leaves over of them: (stages, 2^b, d) float32,
    the same on every machine."""
    # Drawn and averaged on the CPU in float64, from a fixed seed: no rank may have another book.
    generator = torch.Generator().manual_seed(0)
    k = 2**bits
    with torch.inference_mode(False):
        rest = torch.randn(
            max(_SAMPLES * k, 2**13), dim, generator=generator, dtype=torch.float64, device="cpu"
        )
        books = []
        # k-means (Lloyd's): the first k samples to begin with, then assign and average in turn.
        for _ in range(stages):
            book = rest[:k].clone()
            for _ in range(_ROUNDS):
                near = _nearest(rest, book)
                count = torch.zeros(k, dtype=torch.float64, device="cpu").index_add_(
                    0, near, torch.ones_like(rest[:, 0])
                )
                sums = torch.zeros_like(book).index_add_(0, near, rest)
                book = torch.where(count[:, None] > 0, sums / count.clamp(min=1)[:, None], book)
            # Coarser than the last bits, in which machines may differ.
            book = torch.round(book * 2**12) / 2**12
            rest = rest - book[_nearest(rest, book)]
            books.append(book)
        return torch.stack(books).float()
