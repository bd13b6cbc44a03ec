"""Send the k runs of `block` neighbouring values with the largest norm, whole (block-wise
sparsification).

Steps:
    1. cut the span in blocks of `block` values; 2. pick the k of largest L2 norm; 3. send their
       indices (side bytes), a `block`-th as many as `topk` would; 4. send their values (core).
Of all vectors with k blocks it is the nearest: ||v - blockk(v)||² <= (1 - k/m) ||v||² for m blocks.
It is biased, so it belongs in `feedback(…)`. What is copied is whole runs, which memories like.
(Block top-k: Fei et al. 2021, "Efficient sparse collective communication and its application to
accelerate distributed deep learning", SIGCOMM.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from thinwire.core import RankContext, Spec, State, Traits
from thinwire.errors import StrategyError
from thinwire.kernels import reference
from thinwire.what.sparse import _indices
from thinwire.what.sparse._share import count_of, wrong
from thinwire.what.wrap.chain import Transform


@dataclass(frozen=True)
class blockk(Transform):
    """The k blocks of largest L2 norm, exact; values by what follows `>>` (float32 where nothing
    does).

    Args:
        k: how many blocks (int), or what share of them (float in (0, 1]), rounded up.
        block: neighbouring values that are sent or left out together; the last block of a span is
            filled up with zeros.

    Raises:
        StrategyError: k is not positive, or a share above 1; block < 1.

    A block with a NaN or an infinity counts as the largest.

    Example:
        >>> spec = Spec((), 0, 65536, torch.float32)
        >>> # 41 blocks of 64 bytes and indices of 8.3 bits; topk(656) has 3326
        >>> blockk(0.01, block=16).nbytes(spec)
        2668
    """

    examples: ClassVar[tuple[str, ...]] = (
        "blockk(0.1, block=8)",
        "blockk(3, block=7)",
    )

    k: int | float
    block: int = 16

    def __post_init__(self) -> None:
        reasons = wrong("blockk", self.k)
        if self.block < 1:
            reasons.append(f"blockk(block={self.block}): a block has at least 1 value")
        if reasons:
            raise StrategyError(reasons)

    @cached_property
    def traits(self) -> Traits:
        return Traits(grain=self.block, drops=True)

    def core_numel(self, spec: Spec) -> int:
        return count_of(self.k, self._blocks(spec)) * self.block

    def side_nbytes(self, spec: Spec, core_numel: int) -> int:
        return _indices.smallest_nbytes(core_numel // self.block, self._blocks(spec))

    def split(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> tuple[Tensor, Tensor]:
        blocks = reference.to_blocks(x.to(spec.work), self.block)
        indices = self._largest(blocks, count_of(self.k, self._blocks(spec)))
        return blocks[indices].reshape(-1), _indices.write(indices.view(1, -1), self._blocks(spec))

    def join(
        self, core: Tensor, side: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        # Whole blocks come back at their indices; all others are zero.
        count = self._blocks(spec)
        out = torch.zeros(count, self.block, dtype=spec.work, device=core.device)
        out[_indices.read(side, core.numel() // self.block, count, 1, self)[0]] = core.view(
            -1, self.block
        )
        return out.view(-1)[: spec.numel]

    def _largest(self, blocks: Tensor, k: int) -> Tensor:
        """Return the k blocks of largest norm, ascending: (k,) int64."""
        if not blocks.numel():
            return torch.empty(0, dtype=torch.int64, device=blocks.device)
        unit = torch.where(blocks.isfinite(), blocks.abs(), torch.zeros_like(blocks)).amax()
        unit = torch.where(
            unit > 0, unit, torch.ones_like(unit)
        )  # squares of huge or tiny values would not be numbers
        norms: Tensor = torch.linalg.vector_norm(blocks / unit, dim=1)
        return norms.topk(k, sorted=False).indices.sort().values

    def _blocks(self, spec: Spec) -> int:
        return -(-spec.numel // self.block)

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        k = self.core_numel(spec) // self.block
        blocks = reference.to_blocks(x.double().abs(), self.block)
        if k == len(blocks):
            return torch.zeros(spec.numel, dtype=torch.float64)
        # divided by the largest, or squares of the smallest numbers would vanish
        norms = (blocks / blocks.max().clamp(min=1e-300)).norm(dim=1)
        # ties with the smallest that is sent may be left out
        last = norms.topk(k).values[-1] * (1 + 1e-5)
        return torch.where(norms[:, None] <= last, blocks, 0).view(-1)[: spec.numel]
