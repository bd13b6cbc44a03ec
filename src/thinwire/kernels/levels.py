"""Encode by a fixed table of levels: natively, or in plain torch; both are equal bit for bit.

A payload is m scales, one a block, and n codes of b bits, packed. Legend: n values, B a block, m =
ceil(n / B) blocks, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from thinwire.kernels import memory, native, reference
from thinwire.kernels.reference import Key

_FEW = 16  # levels that are compared one by one
_FORMATS = {None: 0, torch.float8_e4m3fn: 1, torch.float8_e5m2: 2}


@dataclass(frozen=True, eq=False)
class Table:
    """Hold the level of each code, and what follows from it.

    Args:
        values: the level of each code, NaN for one that stands for none: (2^bits,) float64.
        bits: b, 1 to 8.
        float8: torch's type that rounds to nearest just so, where there is one.
    """

    values: Tensor
    bits: int
    float8: torch.dtype | None = None

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """The levels in ascending order, each once, and a code of each: (L,) float64, (L,)
        uint8."""
        order = self.values.argsort(stable=True)[: int(self.values.isfinite().sum())]  # NaN last
        levels = self.values[order]
        fresh = torch.cat([torch.ones(1, dtype=torch.bool), levels[1:] > levels[:-1]])
        return levels[fresh] + 0.0, order[fresh].to(torch.uint8)  # -0 and 0 are one level

    @cached_property
    def native(self) -> _Native:
        """The table as the kernels take it."""
        return _Native.of(self)


def nearest_index(x: Tensor, levels: Tensor) -> Tensor:
    """Return the index of the nearest of ascending levels: (n,) int32."""
    return torch.bucketize(x, _middles(levels).to(x), out_int32=True)


def stochastic_index(x: Tensor, levels: Tensor, noise: Tensor) -> Tensor:
    """Return the index of the level below or above x, at random, so that the mean is x: (n,)
    int32."""
    low = (torch.bucketize(x, levels, out_int32=True, right=True) - 1).clamp_(0, len(levels) - 2)
    return low + (noise < (x - levels[low]) / (levels[low + 1] - levels[low]))


def encode(x: Tensor, block: int, table: Table, key: Key | None) -> Tensor:
    """Encode x (n,): a scale a block, its largest magnitude over the largest level, and a code a
    value, of the nearest level or, with a `key`, of one of the two around it at random."""
    x = x.contiguous()
    kernels = native.library(x, *native.KINDS)
    if kernels is None:
        return _encode_in_torch(x, block, table, key)
    own, n = table.native, x.numel()
    out = memory.empty(4 * -(-n // block) + reference.packed_nbytes(n, table.bits), torch.uint8)
    kernels.lib.levels_encode(
        x.data_ptr(),
        native.KINDS[x.dtype],
        n,
        block,
        table.bits,
        _FORMATS[table.float8] if key is None else 0,
        *own.arguments(key is not None),
        key is not None,
        *(key or (0, 0)),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def decode(
    payload: Tensor,
    n: int,
    block: int,
    table: Table,
    dtype: torch.dtype,
    out: Tensor | None = None,
    add: bool = False,
) -> Tensor:
    """Decode a payload of `encode`: (n,) of `dtype`, that of the scales; into `out` where it is
    given, or added to it."""
    # What is there already must lie in a row for a kernel to write to it.
    fits = dtype == torch.float32 and 0 < n < 2**31 and (out is None or out.is_contiguous())
    kernels = native.anywhere(payload) if fits else None
    if kernels is None:
        values = _decode_in_torch(payload, n, block, table, dtype)
        return values if out is None else out.add_(values) if add else out.copy_(values)
    out = memory.empty(n) if out is None else out
    payload, values = payload.contiguous(), table.native.values
    settings = (n, block, table.bits, values.data_ptr(), add, out.data_ptr())
    kernels.lib.levels_decode(payload.data_ptr(), *settings, torch.get_num_threads())
    return out


def _encode_in_torch(x: Tensor, block: int, table: Table, key: Key | None) -> Tensor:
    # 1. A scale a block: its largest magnitude over the table's largest level.
    n, wide = x.numel(), torch.float32 if x.dtype in native.KINDS else x.dtype
    blocks = reference.to_blocks(x.to(wide), block)
    levels, codes = (part.to(x.device) for part in table.places)
    top = levels.abs().max().to(blocks)
    absmax = blocks.abs().amax(1)  # amax hands NaN on
    scales = torch.where(absmax.isfinite(), absmax / top, torch.full_like(absmax, float("nan")))
    # 2. Divide by it; blocks of zeros (and NaN scales, which decode to NaN anyway) become zeros.
    usable = (scales > 0)[:, None]
    scaled = torch.where(usable, blocks / torch.where(usable, scales[:, None], 1), 0)
    flat = scaled.view(-1)[:n].clamp_(-top, top)
    # 3. A code a value: one of the two levels around it at random, or the nearest.
    if key is not None:
        noise = reference.noise(n, key).to(flat)
        picked = codes[stochastic_index(flat, levels.to(flat), noise)]
    elif table.float8 is not None:
        picked = flat.to(table.float8).view(torch.uint8)  # torch's own rounding is the same
    else:
        picked = codes[nearest_index(flat, levels)]
    return torch.cat([reference.as_bytes(scales), reference.pack(picked, table.bits)])


def _decode_in_torch(
    payload: Tensor, n: int, block: int, table: Table, dtype: torch.dtype
) -> Tensor:
    # Scales, codes, and the level of each code times its block's scale.
    head = -(-n // block) * dtype.itemsize
    scales = reference.from_bytes(payload[:head], dtype)
    codes = reference.unpack(payload[head:], n, table.bits)
    values = table.values.to(payload.device, dtype)[codes.to(torch.int32)]
    return reference.to_blocks(values, block).mul(scales[:, None]).view(-1)[:n]


@dataclass(frozen=True, eq=False)
class _Native:
    """What the kernels read of a table, all on the CPU: levels (L,) float32, a code of each, and
    what a value is compared with, to nearest and at random."""

    levels: Tensor
    codes: Tensor
    values: Tensor
    nearest: _Edges
    random: _Edges

    @classmethod
    def of(cls, table: Table) -> _Native:
        wide, codes = table.places
        levels = wide.to(torch.float32)
        # Between levels, or at them: at random a value falls on the level below it first.
        nearest, random = _Edges.of(_middles(wide), False), _Edges.of(levels[1:-1], True)
        return cls(levels, codes, table.values.to(torch.float32), nearest, random)

    def arguments(self, random: bool) -> tuple[float, int, int, int, int, int | None, int]:
        """Return the arguments of `levels_encode`, from the largest level on."""
        own = self.random if random else self.nearest
        return (
            float(self.levels.abs().max()),
            self.levels.data_ptr(),
            own.edges.data_ptr(),
            own.edges.numel() - 1,
            self.codes.data_ptr(),
            None if own.bins is None else own.bins.data_ptr(),
            own.steps,
        )


@dataclass(frozen=True, eq=False)
class _Edges:
    """What values are compared with, ascending, and a NaN; and where there are many of them, how
    many lie below all values of the same upper 16 bits, and how many more at most below one."""

    edges: Tensor
    bins: Tensor | None
    steps: int

    @classmethod
    def of(cls, edges: Tensor, right: bool) -> _Edges:
        edges = edges.to(torch.float32)
        padded = torch.cat([edges, edges.new_full((1,), float("nan"))])
        if edges.numel() < _FEW:
            return cls(padded, None, 0)
        low, high = (torch.bucketize(ends, edges, right=right) for ends in _bins())
        return cls(padded, low.to(torch.uint8), int((high - low).max()))


@cache
def _bins() -> tuple[Tensor, Tensor]:
    """Return the least and the largest number of each value of the upper 16 bits: (2^16,) each,
    zeros where those are of no number."""
    upper = torch.arange(1 << 16, dtype=torch.int64) << 16
    ends = [(upper | lower).to(torch.int32).view(torch.float32) for lower in (0, 0xFFFF)]
    sound = ends[0].isfinite() & ends[1].isfinite()
    near, far = (torch.where(sound, each, 0) for each in ends)
    return torch.minimum(near, far), torch.maximum(near, far)


def _middles(levels: Tensor) -> Tensor:
    return (levels[1:] + levels[:-1]) / 2
