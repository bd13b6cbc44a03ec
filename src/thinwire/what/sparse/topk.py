"""Send the k entries of largest magnitude, of the whole span or of each chunk of `per` values.

Steps:
    1. in each chunk the k largest |v|; 2. their indices, packed, as a bitmap or in Elias–Fano's
       code, whichever is smallest for k of `per` (side bytes; 64 of 4096 take 8 bits a place); 3.
       their values (core).
Of all k-sparse vectors it is the nearest: ||v - topk(v)||² <= (1 - k/n) ||v||². It is biased, so it
belongs in `feedback(…)`. (Aji & Heafield 2017, arXiv:1704.05021; chunks of 4096 as in SparseLoCo,
arXiv:2508.15706.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor

from thinwire.core import RankContext, Spec, State, Traits
from thinwire.errors import StrategyError
from thinwire.kernels import fast, memory
from thinwire.what.sparse import _indices
from thinwire.what.sparse._share import count_of, wrong
from thinwire.what.wrap.chain import Transform


@dataclass(frozen=True)
class topk(Transform):
    """The k largest of each `per` values, exact: indices in the fewest bytes, values by what
    follows `>>` (float32 where nothing does).

    Args:
        k: how many (int), or what share (float in (0, 1]), rounded up.
        per: the chunk; 0 means the whole span.

    Raises:
        StrategyError: k is not positive, above `per`, or a share above 1; per < 0.

    Of equal magnitudes the first are taken. NaN counts as the largest, so it is sent, and every
    rank's sum is NaN there.

    Example:
        >>> spec = Spec((), 0, 8192, torch.float32)
        >>> topk(64, per=4096).nbytes(spec)  # 128 values of 4 bytes and 128 indices of 8 bits
        640
    """

    examples: ClassVar[tuple[str, ...]] = (
        "topk(0.1)",
        "topk(5, per=64)",
        "topk(1)",
    )

    k: int | float
    per: int = 0

    def __post_init__(self) -> None:
        reasons = []
        if self.per < 0:
            reasons.append(
                f"topk(per={self.per}): a chunk has at least 1 value, or 0 for the whole span"
            )
        reasons.extend(wrong("topk", self.k))
        if 0 < self.per < self.k:
            reasons.append(
                f"topk(k={self.k}, per={self.per}): a chunk of {self.per} has no {self.k} largest"
            )
        if reasons:
            raise StrategyError(reasons)

    @cached_property
    def traits(self) -> Traits:
        return Traits(grain=self.per or 1, drops=True)

    def core_numel(self, spec: Spec) -> int:
        return sum(chunks * k for chunks, _, k in self._chunks(spec))

    def side_nbytes(self, spec: Spec, core_numel: int) -> int:
        return sum(
            _indices.smallest_nbytes(k, size, chunks) for chunks, size, k in self._chunks(spec)
        )

    def split(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> tuple[Tensor, Tensor]:
        cores: list[Tensor] = []
        # 1. to 3. run by run: indices as side bytes, values as the core.
        sides: list[Tensor] = []
        for at, chunks, size, k in self._runs(spec):
            where, values = fast.largest(x[at : at + chunks * size].view(chunks, size), k)
            cores.append(values.view(-1))
            sides.append(_indices.write(where, size))
        nothing = x.new_empty(0, dtype=spec.work)
        return _joined(cores, nothing), _joined(sides, x.new_empty(0, dtype=torch.uint8))

    def split_with_residual(
        self, x: Tensor, residual: Tensor, decay: float, spec: Spec, state: State, ctx: RankContext
    ) -> tuple[Tensor, Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        # 1. Add the residual and find the k largest in one pass; y holds all of x + decay ·
        # residual.
        y = memory.empty(spec.numel, spec.work, x.device)
        taken: list[tuple[Tensor, Tensor, Tensor]] = []
        sides: list[Tensor] = []
        # 2. Indices to the side bytes, values to the core.
        for at, chunks, size, k in self._runs(spec):
            rows, past, out = (
                flat[at : at + chunks * size].view(chunks, size) for flat in (x, residual, y)
            )
            where, values = fast.largest_sum(rows, past, decay, out, k)
            taken.append((out, where, values))
            sides.append(_indices.write(where, size))
        core = _joined([values.view(-1) for _, _, values in taken], y.new_empty(0))

        # 3. Once the core is encoded, subtract from y what it decodes to: y becomes the residual.
        def residual_of(decoded: Tensor) -> tuple[Tensor, Tensor]:
            # Where a value of a chunk is not finite, one that was taken is not.
            finite = torch.ones((), dtype=torch.bool, device=x.device)
            for (out, where, values), own in zip(
                taken, decoded.split([values.numel() for _, _, values in taken]), strict=True
            ):
                finite = finite & fast.leave(out, where, values, own.view(values.shape))
            return y, finite

        return core, _joined(sides, x.new_empty(0, dtype=torch.uint8)), residual_of

    def join(
        self, core: Tensor, side: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        out = memory.empty(spec.numel, spec.work, core.device)
        self.put(out, core, side, spec, state, ctx, sender)
        return out

    def put(
        self,
        out: Tensor,
        core: Tensor,
        side: Tensor,
        spec: Spec,
        state: State,
        ctx: RankContext,
        sender: int,
    ) -> None:
        self.add(out.zero_(), core, side, spec, state, ctx, sender)

    def add(
        self,
        total: Tensor,
        core: Tensor,
        side: Tensor,
        spec: Spec,
        state: State,
        ctx: RankContext,
        sender: int,
    ) -> None:
        # Both lie run after run; their sizes follow from the runs.
        done = cut = 0
        for at, chunks, size, k in self._runs(spec):
            nbytes = _indices.smallest_nbytes(k, size, chunks)
            rows, own = (
                total[at : at + chunks * size].view(chunks, size),
                core[done : done + chunks * k].view(chunks, k),
            )
            _indices.add(side[cut : cut + nbytes], own, rows, self)
            done, cut = done + chunks * k, cut + nbytes

    def _runs(self, spec: Spec) -> list[tuple[int, int, int, int]]:
        """Return where a run of equal chunks begins, how many, their size, values kept of each."""
        begins = accumulate((chunks * size for chunks, size, _ in self._chunks(spec)), initial=0)
        return [(at, *run) for at, run in zip(begins, self._chunks(spec), strict=False)]

    def _chunks(self, spec: Spec) -> list[tuple[int, int, int]]:
        """Return (how many chunks, their size, values kept of each): the full chunks, then what is
        left over."""
        size = self.per or max(spec.numel, 1)
        runs = [(spec.numel // size, size), (1, spec.numel % size)]
        return [(chunks, n, count_of(self.k, n)) for chunks, n in runs if chunks and n]

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        x, errors = x.double().abs(), []
        for chunk in x.split(self.per or max(spec.numel, 1)):
            count = self.core_numel(Spec((), 0, chunk.numel(), spec.dtype))
            if count == chunk.numel():
                errors.append(torch.zeros_like(chunk))
            else:  # ties with the smallest that is sent may be left out
                last = chunk.topk(count).values[-1:]
                errors.append(torch.where(chunk <= last, chunk, 0))
        return torch.cat(errors)[: spec.numel]


def _joined(runs: list[Tensor], none: Tensor) -> Tensor:
    """Join tensors one after another; return a single one as it is."""
    return runs[0] if len(runs) == 1 else torch.cat([none, *runs])
