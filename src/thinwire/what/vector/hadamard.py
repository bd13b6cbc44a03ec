"""Rotate blocks at random by a Hadamard matrix: the core is H · D · v / √B, which has no outliers,
so that a coarse grid fits it.

D are random signs, the same on every rank; H is the Walsh–Hadamard matrix of ±1. H · D / √B is
orthonormal: lengths and errors keep their norm. Steps, in each block of B values:
    1. v times the signs.
    2. divided by √B; log2(B) butterflies (a, b) -> (a + b, a - b).
    3. the codec to the right of `>>` says the result; the way back is the same butterflies, then
       the signs.
Each rotated value mixes all B, so it is nearly normal whatever v was: the largest is about √(2 ln
B) root mean squares, where one outlier among B zeros is √B.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from thinwire.core import RankContext, Spec, State, Traits
from thinwire.errors import StrategyError
from thinwire.kernels import reference, rotation
from thinwire.what.wrap.chain import Transform

_MOST = 2**20


@dataclass(frozen=True)
class hadamard(Transform):
    """A rotation of blocks before they are encoded: `hadamard(256) >> uniform(4)`. The core has n
    values, filled up to a power of two in the last block.

    Args:
        block: values that are rotated together: a power of two, from 2 to 2^20. Best a multiple of
            the block of what follows.

    Raises:
        StrategyError: block is no power of two, or out of range.

    A block that holds a NaN or an infinity decodes to nothing finite: each rotated value holds it.
    So does one whose sum overflows: values below the largest float / √B are safe. Alone it sends
    its core in float32 and gains nothing.

    Example:
        >>> from thinwire.what import uniform
        >>> spec = Spec((), 0, 1000, torch.float32)  # three blocks of 256, and 232 filled up to 256
        >>> core = Spec((), 0, 1024, torch.float32)
        >>> (hadamard(256) >> uniform(4)).nbytes(spec) == uniform(4).nbytes(core)
        True

    Source: Suresh et al. 2017, arXiv:1611.00429 (rotation before quantising for a mean); blocks
    before 4 bits as in ZeRO++'s successors and QuaRot (Ashkboos et al. 2024, arXiv:2404.00456).
    Differs from Suresh: blocks, not the whole vector filled up to a power of two.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "hadamard(64) >> uniform(4)",
        "hadamard(2) >> sign(8)",
        "hadamard(16) >> topk(4, per=16) >> fp8()",
        "hadamard(8) >> hadamard(128)",
        'hadamard(128) >> uniform(2, 0, rounding="stochastic")',
        "hadamard(32)",
    )

    block: int = 256

    def __post_init__(self) -> None:
        if not 2 <= self.block <= _MOST or self.block & (self.block - 1):
            raise StrategyError(
                f"hadamard(block={self.block}): the butterflies need a power of two from 2 to "
                f"{_MOST}, such as 256"
            )

    @cached_property
    def traits(self) -> Traits:
        return Traits(grain=self.block, randomised=True, unbiased=True)

    def core_numel(self, spec: Spec) -> int:
        return rotation.core_numel(spec.numel, self.block)

    def side_nbytes(self, spec: Spec, core_numel: int) -> int:
        return 0

    def split(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> tuple[Tensor, Tensor]:
        # Zeros fill the last block; signs first, so that equal values spread, too.
        core = rotation.turned(x, self.block, self._signs(spec, ctx))
        return core, torch.empty(0, dtype=torch.uint8, device=x.device)

    def join(
        self, core: Tensor, side: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        return rotation.turned_back(core, spec.numel, self.block, self._signs(spec, ctx))

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
        rotation.turned_back(core, spec.numel, self.block, self._signs(spec, ctx), total)

    def _signs(self, spec: Spec, ctx: RankContext) -> Tensor:
        """Draw the signs, the same on all ranks: a bit a value of the core, uint8 on the CPU."""
        return torch.randint(
            0,
            256,
            (reference.packed_nbytes(self.core_numel(spec), 1),),
            dtype=torch.uint8,
            generator=ctx.generator(spec, shared=True),
            device="cpu",
        )

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        info = torch.finfo(spec.work)
        tiny = self.block * info.smallest_normal * info.eps
        core = x.new_zeros(self.core_numel(spec), dtype=torch.float64)
        core[: spec.numel] = x.abs()
        return self._block_norms(core, spec) * info.eps * 2 * self.block.bit_length() + tiny

    def error_spread(
        self,
        error: Tensor,
        core: Tensor,
        side: Tensor,
        spec: Spec,
        state: State,
        ctx: RankContext,
    ) -> Tensor:
        return self._block_norms(error.double(), spec)

    def _block_norms(self, core: Tensor, spec: Spec) -> Tensor:
        """Return the length of each rotated block at every value of it: (spec.numel,)."""
        full, out = spec.numel // self.block * self.block, []
        for blocks in (core[:full].view(-1, self.block), core[full:].view(1, -1)):
            if blocks.numel():
                # divided by the largest, or squares of the smallest numbers would vanish
                largest = blocks.amax(1, keepdim=True).clamp(min=1e-300)
                norms = (blocks / largest).norm(dim=1, keepdim=True) * largest
                out.append(norms.expand_as(blocks).reshape(-1))
        return torch.cat(out)[: spec.numel] if out else core
