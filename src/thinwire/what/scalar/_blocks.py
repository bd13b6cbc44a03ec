"""Cut a span into pieces of parameters, and each piece into blocks that share a step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from thinwire.core import Spec


@dataclass(frozen=True)
class Layout:
    """Pieces of a span and their blocks, none of which crosses a piece. P pieces, m blocks."""

    sizes: Tensor  # (P,) int64 values
    rows: Tensor  # (P,) int64 blocks
    owner: Tensor  # (m,) int64 the piece of each block
    block: int

    def real(self, device: torch.device) -> Tensor | None:
        """Return which entries of the blocks are values, not filling: (m, block) bool.

        `None` where all are.
        """
        if not (self.sizes % self.block).any():
            return None
        # Only the last block of a piece may be filled up.
        ends = self.rows.cumsum(0) - 1
        counts = torch.full((len(self.owner),), self.block, device="cpu")
        counts[ends] = self.sizes - (self.rows - 1) * self.block
        return (torch.arange(self.block, device="cpu") < counts[:, None]).to(device)

    def groups(self, widths: Tensor, device: torch.device) -> list[tuple[int, Tensor]]:
        """Return the widths in use, ascending, each with its blocks: (k,) int64."""
        of_row = widths[self.owner]
        return [
            (bits, (of_row == bits).nonzero().view(-1).to(device))
            for bits in widths.unique().tolist()
            if bits
        ]


@lru_cache(maxsize=256)
def layout_of(spec: Spec, per: int, block: int) -> Layout:
    """Cut the parameters of a span into pieces of `per` values (0: whole ones), and into blocks.

    Example:
        >>> layout = layout_of(Spec((), 0, 10, torch.float32), per=8, block=4)
        >>> layout.sizes.tolist(), layout.rows.tolist(), layout.owner.tolist()
        ([8, 2], [2, 1], [0, 0, 1])
    """
    runs = [extent.high - extent.low for extent in spec.extents()] or [spec.numel] * (
        spec.numel > 0
    )
    sizes = torch.tensor(
        [size for run in runs for size in sizes_of(run, per)], dtype=torch.int64, device="cpu"
    )
    rows = (sizes + block - 1) // block
    return Layout(
        sizes, rows, torch.arange(len(sizes), device="cpu").repeat_interleave(rows), block
    )


def sizes_of(run: int, per: int) -> list[int]:
    """Return the sizes of the pieces of a parameter, or a part of one, of `run` values."""
    whole, rest = divmod(run, per or run)
    return [per or run] * whole + [rest] * (rest > 0)


def in_rows(x: Tensor, layout: Layout, real: Tensor | None) -> Tensor:
    """Lay values out in blocks, each piece filled up with zeros: (n,) -> (m, block)."""
    if real is None:
        return x.contiguous().view(-1, layout.block)
    return x.new_zeros(real.shape).masked_scatter_(real, x)
