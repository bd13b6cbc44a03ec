"""Transform each size × size tile of a matrix into as many frequencies, whose few largest hold most
of it.

Steps:
    1. A matrix is cut into tiles of size × size; what is left over at its right and lower edge are
       smaller tiles.
    2. C = D X Dᵀ for each tile X, with D the orthonormal DCT-II: D[k, i] = sqrt(2 / s) cos(π (2 i +
       1) k / (2 s)), row 0 over sqrt(2).
    3. The core is the tiles one behind the other: the full ones first, then the smaller ones.
    4. Back: X = Dᵀ C D.
D is orthonormal, so lengths stay: what a codec loses of C, it loses of X. Vectors, and cut parts,
are one row: tiles of 1 × size. Full tiles come first so that `topk(k, per=size²)` keeps k of each;
`feedback(dct(64) >> topk(32, per=4096), decay=0.999)` is DeMo's.

Source: Ahmed, Natarajan & Rao 1974; DeMo (Peng, Quesnelle & Kingma 2024, arXiv:2411.19870). Differs
from the paper: it cuts a dimension by its largest divisor up to 64, so that all tiles of a
parameter are alike; here the tile is what was asked, and the edges are smaller.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from thinwire.core import RankContext, Spec, State, Traits, check_nbytes
from thinwire.errors import StrategyError
from thinwire.kernels import cosines, memory
from thinwire.what.lowrank._parts import runs
from thinwire.what.wrap.chain import Transform


@dataclass(frozen=True)
class dct(Transform):
    """A cosine transform with as many frequencies as values: send a few of them by `dct(64) >>
    topk(32, per=4096)`.

    A parameter of more than two dimensions is a matrix of its first by all others.

    Args:
        size: rows and columns of a tile, at least 2.

    Raises:
        StrategyError: size < 2.

    Alone it sends 4 bytes a value and loses only to rounding. A tile that holds a NaN or an
    infinity is not finite throughout.

    Example:
        >>> from thinwire.core import Part
        >>> from thinwire.what import topk
        >>> spec = Spec((Part("w", (128, 192), 0, "matrix"),), 0, 128 * 192, torch.float32)
        >>> codec = dct(64) >> topk(32, per=4096)
        >>> # 6 tiles, 32 frequencies of each
        >>> codec.first.core_numel(spec), codec.second.core_numel(spec)
        (24576, 192)
    """

    examples: ClassVar[tuple[str, ...]] = (
        "dct(8)",
        "feedback(dct(4) >> topk(5, per=16), decay=0.999)",
        "dct(4) >> uniform(4)",
        "dct(3)",
    )

    size: int = 64

    def __post_init__(self) -> None:
        if self.size < 2:
            raise StrategyError(
                f"dct(size={self.size}): a tile has at least 2 rows and columns, else it has no "
                "frequencies"
            )

    @cached_property
    def traits(self) -> Traits:
        return Traits(grain="part")

    def core_numel(self, spec: Spec) -> int:
        return spec.numel

    def side_nbytes(self, spec: Spec, core_numel: int) -> int:
        return 0

    def split(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> tuple[Tensor, Tensor]:
        x = x.to(spec.work).contiguous()
        # C = D X Dᵀ of each tile: all tiles of a size in one product on the left, and one on the
        # right.
        core, at = memory.empty_like(x), 0
        for tiles in self._tiles(spec):
            rows, columns = _matrix(tiles.height, x), _matrix(tiles.width, x)
            own, area = core[at : at + tiles.numel], tiles.of(x)
            if cosines.forward(area, own):
                at += tiles.numel
                continue
            cut = memory.empty_like(own).view(area.shape).copy_(area)
            left = _on_the_left(rows, cut.flatten(0, 1), memory.empty_like(own))
            torch.mm(left.view(-1, tiles.width), columns.T, out=own.view(-1, tiles.width))
            at += tiles.numel
        return core, torch.empty(0, dtype=torch.uint8, device=x.device)

    def join(
        self, core: Tensor, side: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        check_nbytes(self, side, 0)
        core, out, at = core.contiguous(), memory.empty(spec.numel, spec.work, core.device), 0
        # The inverse of an orthonormal transform is its transpose.
        for tiles in self._tiles(spec):
            rows, columns = _matrix(tiles.height, core), _matrix(tiles.width, core)
            own, area = core[at : at + tiles.numel], tiles.of(out)
            if cosines.backward(own, area):
                at += tiles.numel
                continue
            right = memory.empty_like(own).view(-1, tiles.width)
            torch.mm(own.view(-1, tiles.width), columns, out=right)
            cut = right.view(-1, tiles.height, tiles.width)
            area.copy_(_on_the_left(rows.T, cut, memory.empty_like(own)).view(area.shape))
            at += tiles.numel
        return out

    def _tiles(self, spec: Spec) -> list[_Tiles]:
        """Return all tiles of a span, in the order of the core."""
        all_tiles = [tiles for run in runs(spec) for tiles in self._of(*run)]
        full = [tiles for tiles in all_tiles if tiles.height == tiles.width == self.size]
        return full + [tiles for tiles in all_tiles if not tiles.height == tiles.width == self.size]

    def _of(self, at: int, rows: int, columns: int) -> Iterator[_Tiles]:
        for top, down, height in _cuts(rows, self.size):
            for left, across, width in _cuts(columns, self.size):
                yield _Tiles(at, rows, columns, top, down, height, left, across, width)

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        wide = Spec(spec.parts, spec.begin, spec.numel, torch.float64)
        core = self.split(x.double(), wide, State(), ctx)[0]
        return 8 * self.size * torch.finfo(spec.work).eps * self._tile_norms(core, spec)

    def error_spread(
        self,
        error: Tensor,
        core: Tensor,
        side: Tensor,
        spec: Spec,
        state: State,
        ctx: RankContext,
    ) -> Tensor:
        return self._tile_norms(error.double(), spec)

    def _tile_norms(self, core: Tensor, spec: Spec) -> Tensor:
        """Return the length of each tile of a core at every value of it: (spec.numel,) float64.

        The transform is orthonormal: no value is further off than all frequencies together.
        """
        # Norms in units of the largest, where squares do not overflow.
        out, at = torch.empty(spec.numel, dtype=torch.float64), 0
        for tiles in self._tiles(spec):
            area = tiles.of(out)
            own = core[at : at + area.numel()].view(area.shape)
            largest = own.abs().amax((2, 3), keepdim=True).clamp(min=1e-300)
            norms = (own / largest).square().sum((2, 3), keepdim=True).sqrt() * largest
            area[:] = norms + torch.finfo(spec.work).tiny
            at += area.numel()
        return out


@dataclass(frozen=True, slots=True)
class _Tiles:
    """down × across tiles of height × width each, from (top, left) on, of the matrix of rows ×
    columns that lies at `at`."""

    at: int
    rows: int
    columns: int
    top: int
    down: int
    height: int
    left: int
    across: int
    width: int

    @property
    def numel(self) -> int:
        return self.down * self.height * self.across * self.width

    def of(self, x: Tensor) -> Tensor:
        """Return these tiles of a flat span, as a view: (down, across, height, width)."""
        area = x[self.at : self.at + self.rows * self.columns].view(self.rows, self.columns)
        area = area[
            self.top : self.top + self.down * self.height,
            self.left : self.left + self.across * self.width,
        ]
        tiles: Tensor = area.unflatten(1, (self.across, self.width)).unflatten(
            0, (self.down, self.height)
        )
        return tiles.permute(0, 2, 1, 3)


def _on_the_left(by: Tensor, tiles: Tensor, out: Tensor) -> Tensor:
    """Return a square matrix times each tile (k, height, width), in the memory of `out`."""
    return torch.bmm(by.expand(len(tiles), *by.shape), tiles, out=out.view(tiles.shape))


def _cuts(length: int, size: int) -> list[tuple[int, int, int]]:
    """Return (where, how many, how long): the full cuts of a dimension, then what is left over."""
    full = length // size
    return [
        cut
        for cut in ((0, full, size), (full * size, 1, length - full * size))
        if cut[1] and cut[2]
    ]


def _matrix(size: int, like: Tensor) -> Tensor:
    return cosines.matrix(size, like.dtype, like.device)
