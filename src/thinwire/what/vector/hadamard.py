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
from thinwire.kernels import reference
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
        return self._full(spec) + self._tail(spec)

    def side_nbytes(self, spec: Spec, core_numel: int) -> int:
        return 0

    def split(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> tuple[Tensor, Tensor]:
        # Zeros fill the last block; signs first, so that equal values spread, too.
        core = torch.zeros(self.core_numel(spec), dtype=spec.work, device=x.device)
        core[: spec.numel] = x
        return self._rotate(core.mul_(self._signs(spec, ctx, x.device)), spec), torch.empty(
            0, dtype=torch.uint8, device=x.device
        )

    def join(
        self, core: Tensor, side: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        return self._rotate(core, spec).mul_(self._signs(spec, ctx, core.device))[: spec.numel]

    def _rotate(self, core: Tensor, spec: Spec) -> Tensor:
        """Rotate whole blocks, and the last one in its own size."""
        # The last block has a power of two of its own, at least as long as what it holds.
        full = self._full(spec)
        parts = ((core[:full], self.block), (core[full:], self._tail(spec)))
        return torch.cat(
            [rotate(part.view(-1, size)).view(-1) for part, size in parts if size and part.numel()]
            or [core]
        )

    def _full(self, spec: Spec) -> int:
        """Values in whole blocks."""
        return spec.numel // self.block * self.block

    def _tail(self, spec: Spec) -> int:
        """Return the values of the last block, filled up to a power of two."""
        left = spec.numel - self._full(spec)
        return 1 << (left - 1).bit_length() if left else 0

    def _signs(self, spec: Spec, ctx: RankContext, device: torch.device) -> Tensor:
        """Return the signs, the same on all ranks: (core_numel,) ±1."""
        n = self.core_numel(spec)
        generator = ctx.generator(spec, shared=True)
        random_bytes = torch.randint(
            0,
            256,
            (reference.packed_nbytes(n, 1),),
            dtype=torch.uint8,
            generator=generator,
            device="cpu",
        )
        return reference.unpack(random_bytes.to(device), n, 1).to(spec.work).mul_(-2).add_(1)

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
        full, out = self._full(spec), []
        for blocks in (core[:full].view(-1, self.block), core[full:].view(1, -1)):
            if blocks.numel():
                # divided by the largest, or squares of the smallest numbers would vanish
                largest = blocks.amax(1, keepdim=True).clamp(min=1e-300)
                norms = (blocks / largest).norm(dim=1, keepdim=True) * largest
                out.append(norms.expand_as(blocks).reshape(-1))
        return torch.cat(out)[: spec.numel] if out else core


def rotate(rows: Tensor) -> Tensor:
    """Return each row (of a power of two) times the orthonormal Walsh–Hadamard matrix, which is its
    own inverse.

    Example:
        >>> rotate(torch.tensor([[1.0, 0.0, 0.0, 0.0]])).tolist()
        [[0.5, 0.5, 0.5, 0.5]]
    """
    size = rows.shape[1]
    out: Tensor = rows * size**-0.5  # first, so that sums do not overflow before their scale comes
    width = 1
    while width < size:
        pairs = out.view(-1, 2, width)
        out = torch.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), 1)
        width *= 2
    return out.view(rows.shape)
