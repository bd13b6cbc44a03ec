"""Compute on each grid of `uniform`: which numbers a block sends, its codes, its values.

Legend: rows are (m, B), m blocks of B values; codes are 0 … `last`, b bits each; a header is the
numbers that each block sends, (m,) each, in the order of the payload. The grids:
    "tread", "rise": levels Δ · (code - last/2); a header is (Δ,). "tread" has a level at zero.
    "affine": levels low + Δ · code; a header is (low, Δ).
    "point": levels Δ · (code - z); a header is (Δ, z), z in one byte.
    a fixed step: "tread" with one Δ for all blocks; a header is empty.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from thinwire.kernels import reference
from thinwire.what.scalar._scales import Scale, affine_grid, point_grid, symmetric_steps

Header = tuple[Tensor, ...]
GridName = Literal["tread", "rise", "affine", "point"]


@dataclass(frozen=True)
class Grid(ABC):
    """Levels at equal distances, placed for each block; `scale` and `at` cut as in `uniform`."""

    bits: int
    rounding: reference.Rounding
    scale: Scale
    at: float | None

    @property
    def last(self) -> int:
        """The largest code: the steps between the first and the last level."""
        return (1 << self.bits) - 1

    @property
    def reach(self) -> float:
        """The largest error between two levels, in steps."""
        return 0.5 if self.rounding == "nearest" else 1.0

    def header_nbytes(self, dtype: torch.dtype) -> int:
        """Return the bytes that a block sends besides its codes."""
        return dtype.itemsize

    @abstractmethod
    def header(self, rows: Tensor) -> Header:
        """Fit the grid to each block of `rows`."""

    def read_header(self, head: Tensor, dtype: torch.dtype) -> Header:
        """Split the bytes of all headers, uint8, into numbers of `dtype`."""
        return (reference.from_bytes(head, dtype),)

    @abstractmethod
    def quantise(self, rows: Tensor, header: Header, random_bits: Tensor | None) -> Tensor:
        """Return the codes of `rows`: (m, B) uint8; to nearest where there are no random bits."""

    @abstractmethod
    def dequantise(self, codes: Tensor, header: Header, dtype: torch.dtype) -> Tensor:
        """Return the values of `codes`: (m, B) of `dtype`, which is that of the header."""

    @abstractmethod
    def levels(self, header: Header) -> tuple[Tensor, Tensor]:
        """Return the lowest level and the step of each block: (m,), (m,) float64."""

    def error_bound(self, rows: Tensor) -> Tensor:
        """Bound |Q(v) - v| of each value: (m, B) float64."""
        info, absmax = torch.finfo(rows.dtype), rows.double().abs().amax(1, keepdim=True)
        low, step = (each[:, None] for each in self.levels(self.header(rows)))
        rows = rows.double()
        # 1. Between two levels: half a step to nearest, a step at random.
        inside = self.reach * step
        # 2. What lies beyond the first or last level ends there.
        cut = torch.maximum(low - rows, rows - low - self.last * step)
        # 3. What float arithmetic adds; a step may be subnormal.
        tiny = 2 * (self.last + 1) * info.smallest_normal * info.eps
        slack = (8 * info.eps * absmax + tiny) * (absmax > 0)
        return torch.maximum(inside, cut) + slack


class Symmetric(Grid):
    """Levels around zero, with the arithmetic of `kernels`."""

    kind: ClassVar[reference.Grid]

    @property
    def last(self) -> int:
        return reference.levels(self.bits, self.kind)[0] - 1

    def header(self, rows: Tensor) -> Header:
        return (symmetric_steps(rows, self.bits, self.kind, self.scale, self.at),)

    def quantise(self, rows: Tensor, header: Header, random_bits: Tensor | None) -> Tensor:
        return reference.quantise(rows, header[0][:, None], self.bits, self.kind, random_bits)

    def dequantise(self, codes: Tensor, header: Header, dtype: torch.dtype) -> Tensor:
        return reference.dequantise(codes, header[0][:, None], self.bits, self.kind)

    def levels(self, header: Header) -> tuple[Tensor, Tensor]:
        step = header[0].double()
        return -self.last / 2 * step, step


class Tread(Symmetric):
    """2^b - 1 levels around zero, one of them at zero."""

    kind = "tread"


class Rise(Symmetric):
    """2^b levels around zero, none of them at zero."""

    kind = "rise"


class Affine(Grid):
    """2^b levels from the lowest to the highest value of a block that is not cut."""

    def header_nbytes(self, dtype: torch.dtype) -> int:
        return 2 * dtype.itemsize

    def header(self, rows: Tensor) -> Header:
        return affine_grid(rows, self.bits, self.scale, self.at)

    def read_header(self, head: Tensor, dtype: torch.dtype) -> Header:
        low, step = reference.from_bytes(head, dtype).view(2, -1)
        return low, step

    def quantise(self, rows: Tensor, header: Header, random_bits: Tensor | None) -> Tensor:
        low, step = (each[:, None] for each in header)
        # v - low may be no float where values are near the largest: then all are taken quartered
        huge = rows.abs().amax(1, keepdim=True) > torch.finfo(rows.dtype).max / 4
        quarter = torch.where(huge, 0.25, 1.0).to(rows)
        usable = (step > 0) & step.isfinite()
        divisor = torch.where(usable, step * quarter, 1)
        scaled = torch.where(usable, (rows * quarter - low * quarter) / divisor, 0)
        return _rounded(scaled, random_bits).clamp_(0, self.last).to(torch.uint8)

    def dequantise(self, codes: Tensor, header: Header, dtype: torch.dtype) -> Tensor:
        low, step = (each[:, None] for each in header)
        half = codes.to(dtype).mul_(step / 2)
        return half + low + half  # in halves, for the highest less the lowest may be no float

    def levels(self, header: Header) -> tuple[Tensor, Tensor]:
        low, step = header
        return low.double(), step.double()


class Point(Grid):
    """2^b levels moved by whole steps towards the values of a block, one of them at zero."""

    def header_nbytes(self, dtype: torch.dtype) -> int:
        return dtype.itemsize + 1

    def header(self, rows: Tensor) -> Header:
        # to nearest, half a step beyond the last level is as near as between two
        cover = self.rounding == "stochastic" and self.scale not in ("range", "mse")
        zero, step = point_grid(rows, self.bits, self.scale, self.at, cover)
        return step, zero

    def read_header(self, head: Tensor, dtype: torch.dtype) -> Header:
        m = head.numel() // self.header_nbytes(dtype)
        return reference.from_bytes(head[:-m], dtype), head[-m:]

    def quantise(self, rows: Tensor, header: Header, random_bits: Tensor | None) -> Tensor:
        # Codes count from the zero's own code; blocks without a usable step are all zeros.
        step, zero = (each[:, None] for each in header)
        usable = (step > 0) & step.isfinite()
        scaled = torch.where(usable, rows / torch.where(usable, step, 1), 0)
        codes = _rounded(scaled, random_bits).add_(zero)
        return codes.clamp_(0, self.last).to(torch.uint8)

    def dequantise(self, codes: Tensor, header: Header, dtype: torch.dtype) -> Tensor:
        step, zero = (each[:, None] for each in header)
        return (codes.to(dtype) - zero.to(dtype)).mul_(step)

    def levels(self, header: Header) -> tuple[Tensor, Tensor]:
        step, zero = header
        return (-step * zero).double(), step.double()


@dataclass(frozen=True)
class FixedStep(Tread):
    """2^b - 1 levels around zero at a step that is never sent; code 2^b - 1 stands for NaN."""

    step: float

    def header_nbytes(self, dtype: torch.dtype) -> int:
        return 0

    def header(self, rows: Tensor) -> Header:
        return ()

    def read_header(self, head: Tensor, dtype: torch.dtype) -> Header:
        return ()

    def quantise(self, rows: Tensor, header: Header, random_bits: Tensor | None) -> Tensor:
        step = rows.new_full((1,), self.step)
        codes = super().quantise(rows.nan_to_num(0, 0, 0), (step,), random_bits)
        return codes.masked_fill_(~rows.isfinite(), self.last + 1)

    def dequantise(self, codes: Tensor, header: Header, dtype: torch.dtype) -> Tensor:
        step = torch.full((1,), self.step, dtype=dtype, device=codes.device)
        values = super().dequantise(codes, (step,), dtype)
        return values.masked_fill_(codes == self.last + 1, float("nan"))

    def levels(self, header: Header) -> tuple[Tensor, Tensor]:
        return super().levels((torch.tensor([self.step], dtype=torch.float64),))

    def error_bound(self, rows: Tensor) -> Tensor:
        size = rows.double().abs()
        inside = torch.full_like(size, self.reach * self.step)
        cut = size - self.last // 2 * self.step
        return torch.maximum(inside, cut) + 4 * torch.finfo(rows.dtype).eps * size


_GRIDS: dict[GridName, type[Grid]] = {
    "tread": Tread,
    "rise": Rise,
    "affine": Affine,
    "point": Point,
}


def grid_of(
    name: GridName,
    bits: int,
    rounding: reference.Rounding,
    scale: Scale,
    at: float | None,
    step: float | None,
) -> Grid:
    """Return the arithmetic of a grid, of a fixed step where one is given.

    Example:
        >>> grid = grid_of("affine", 2, "nearest", "absmax", None, None)
        >>> rows = torch.tensor([[4.0, 5.2, 6.0, 7.0]])
        >>> low, step = header = grid.header(rows)
        >>> codes = grid.quantise(rows, header, None)
        >>> codes.tolist(), grid.dequantise(codes, header, torch.float32).tolist()
        ([[0, 1, 2, 3]], [[4.0, 5.0, 6.0, 7.0]])
    """
    if step is not None:
        return FixedStep(bits, rounding, scale, at, step)
    return _GRIDS[name](bits, rounding, scale, at)


def _rounded(scaled: Tensor, random_bits: Tensor | None) -> Tensor:
    """Round to nearest, or up with the fraction as probability, by 16 random bits a value."""
    if random_bits is None:
        return torch.round(scaled)
    return torch.floor(scaled + (random_bits + 0.5) / 65536)
