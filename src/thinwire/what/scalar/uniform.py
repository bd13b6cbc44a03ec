"""Quantise values on a uniform grid: Q(v) = Δ · round(v / Δ).

Per block of B values, Δ = c / L with L the largest level and c the clip: max|v|, or less, where
large values are cut. The payload is m steps (one a block) and n codes of b bits. Steps:
    1. Δ of each block (or one fixed Δ, never sent).
    2. code = round(v/Δ) to nearest, or floor(v/Δ + u), u uniform in [0, 1), which is unbiased:
       E[Q(v)] = v where nothing is cut.
    3. codes packed, b bits each.
|Q(v) - v| <= Δ/2 to nearest, < Δ stochastic, for |v| <= c; what is larger becomes ±c. On the grid
"affine" the levels are low + Δ · code from a lowest to a highest value of the block, and m lowest
values go with the m steps; on "point" they are Δ · (code - z), z the whole number that brings them
closest to that range, and m bytes of z go with the m steps. `_scales.py` places the grid of a
block; `_grids.py` has the arithmetic of each grid.

Source: QSGD (Alistarh et al. 2017, arXiv:1610.02132) for stochastic rounding and "norm"; blocks as
in 8-bit optimisers (Dettmers et al. 2022, arXiv:2110.02861); "affine" with 6 sigma as in
INTELLECT-1 (Jaghouar et al. 2024, arXiv:2412.01152); "mse" as in post-training quantisation (Zhao
et al. 2019, arXiv:1901.09504). Differs from QSGD: a block's scale is its largest magnitude, unless
"norm" is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from thinwire.core import (
    EncodedWithResidual,
    Packet,
    RankContext,
    Sectioned,
    Spec,
    State,
    Traits,
    check_nbytes,
)
from thinwire.errors import StrategyError
from thinwire.kernels import fast, reference
from thinwire.what.scalar._grids import Grid, GridName, Symmetric, grid_of
from thinwire.what.scalar._levels import length
from thinwire.what.scalar._scales import Block, Run, Scale, runs

_AT_ONCE = 2**17  # values that go through plain torch at a time on a CPU
_NEEDS_AT = ("percentile", "sigma")
_LEAST, _MOST = 1e-37, 1e37  # what a float32 holds, and its multiples with it


@dataclass(frozen=True)
class uniform(Sectioned):
    """Send b-bit values on a uniform grid, one step a block: ceil(n·b/8) + 4·ceil(n/B) bytes.

    A step has 8 bytes in float64 buckets. "affine" sends two numbers a block, "point" one byte
    more.

    Args:
        bits: 1 to 8; 1 on the grid "rise" only.
        block: values that share a step; 0 means the whole span, "row" what one entry of a
            parameter's first dimension holds (a whole vector). A row that a route cuts has a step
            on each side.
        rounding: "nearest", or "stochastic" (unbiased, larger error; drawn by (seed, step, key,
            rank)).
        step: a fixed Δ in the units of a contribution (a gradient times its weight share), clipped
            at ±LΔ; nothing but codes is sent.
        grid: "tread" has a level at zero (2^b - 1 levels); "rise" has none and 2^b levels, for what
            has no small values (after top-k); "affine" has 2^b levels from a block's lowest to its
            highest value, for what does not lie around zero; "point" has as many, moved so that one
            of them is zero, for what does but lies further to one side, or has one sign.
        scale: where a block is cut: "absmax" cuts nothing; "norm" (QSGD's) neither, its largest
            level is the block's norm; "percentile" and "sigma" cut at `at`; "mse" tries 16 clips
            (on "point" 80) and takes the one of least squared error, of rounding to nearest;
            "range", on "point" alone, cuts up to half a step at one end for a shorter step: at
            random that is biased, and to nearest, where it loses nothing, "absmax" does it too.
        at: of "percentile", the share of magnitudes that are not cut, in per cent, above 50 and
            below 100 (on "affine" and "point", at each end); of "sigma", how many root mean squares
            (on "affine" and "point", standard deviations around the mean), never more than the
            block's own range.

    Raises:
        StrategyError: an argument outside the above, or two that do not go together.

    A block that holds a NaN or an infinity decodes to NaN throughout (with a fixed step: that value
    alone).

    Example:
        >>> spec = Spec((), 0, 1024, torch.float32)
        >>> uniform(bits=4, block=256).nbytes(spec)
        528
        >>> uniform(bits=4, block=256, grid="affine").nbytes(spec)
        544
    """

    examples: ClassVar[tuple[str, ...]] = (
        "uniform(8)",
        "uniform(4, block=32)",
        "uniform(2, block=0)",
        'uniform(2, block=16, grid="rise")',
        'uniform(4, rounding="stochastic")',
        'uniform(2, block=5, grid="rise", rounding="stochastic")',
        'uniform(5, "row")',
        'uniform(1, 0, grid="rise")',
        'uniform(1, 8, grid="rise", rounding="stochastic")',
        "uniform(7, step=0.02)",
        'uniform(3, "row", grid="affine")',
        'uniform(6, 16, grid="affine", rounding="stochastic")',
        'uniform(4, scale="norm", rounding="stochastic")',
        'uniform(3, scale="mse")',
        'uniform(2, 0, scale="mse", grid="affine")',
        'uniform(4, 0, scale="percentile", at=98.0)',
        'uniform(3, 32, scale="percentile", at=90.0, grid="affine")',
        'uniform(3, 0, scale="sigma", at=2.5)',
        'uniform(8, scale="sigma", at=6.0, grid="affine")',
        'uniform(3, scale="sigma", at=2.0, rounding="stochastic", grid="rise")',
        'uniform(4, grid="point")',
        'uniform(2, 0, "stochastic", grid="point")',
        'uniform(3, "row", "stochastic", grid="point", scale="range")',
        'uniform(8, 32, grid="point", scale="mse")',
        'uniform(3, 0, "stochastic", grid="point", scale="percentile", at=90.0)',
        "uniform(8, step=0.05)",
        'uniform(2, step=0.5, rounding="stochastic")',
    )

    bits: Literal[8, 7, 6, 5, 4, 3, 2, 1] = 8
    block: Block = 256
    rounding: reference.Rounding = "nearest"
    step: float | None = None
    grid: GridName = "tread"
    scale: Scale = "absmax"
    at: float | None = None

    def __post_init__(self) -> None:
        reasons = []
        if self.bits not in range(1, 9):
            reasons.append(f"uniform(bits={self.bits}): choose 1 to 8")
        if self.bits == 1 and self.grid != "rise":
            reasons.append(
                f"uniform(bits=1, grid={self.grid!r}): two levels leave none for zero; use "
                "grid='rise', or sign()"
            )
        if self.block != "row" and (not isinstance(self.block, int) or self.block < 0):
            reasons.append(
                f"uniform(block={self.block!r}): a block has at least 1 value, or 0 for the whole "
                "span, or is a 'row'"
            )
        if self.rounding not in ("nearest", "stochastic"):
            reasons.append(f"uniform(rounding={self.rounding!r}): choose 'nearest' or 'stochastic'")
        if self.grid not in get_args(GridName):
            reasons.append(
                f"uniform(grid={self.grid!r}): choose 'tread' or 'rise', or 'affine' or 'point'"
            )
        if self.step is not None and not _LEAST <= self.step <= _MOST:
            reasons.append(
                f"uniform(step={self.step}): a fixed step is positive and finite in float32, from "
                f"{_LEAST} to {_MOST}"
            )
        if self.step is not None and self.grid != "tread":
            reasons.append(
                f"uniform(step=…, grid={self.grid!r}): every code is taken, none is left to mark "
                "a NaN; use grid='tread'"
            )
        if self.step is not None and (self.scale != "absmax" or self.block == "row"):
            reasons.append(
                "uniform(step=…, scale=… or block='row'): a fixed step is every block's; leave "
                "the one or the other out"
            )
        if self.scale == "range" and self.grid != "point":
            reasons.append(
                f"uniform(scale='range', grid={self.grid!r}): only 'point' moves its grid to have "
                "a zero; or use scale='absmax'"
            )
        reasons.extend(self._wrong_scale())
        if reasons:
            raise StrategyError(reasons)

    def _wrong_scale(self) -> list[str]:
        if self.scale not in get_args(Scale):
            return [
                (
                    f"uniform(scale={self.scale!r}): choose one of "
                    f"{', '.join(map(repr, get_args(Scale)))}"
                )
            ]
        if self.scale == "norm" and self.grid in ("affine", "point"):
            return [
                (
                    f"uniform(scale='norm', grid={self.grid!r}): a norm is a distance from zero; "
                    "use grid='tread', or another scale"
                )
            ]
        if self.scale not in _NEEDS_AT:
            return (
                [
                    (
                        f"uniform(scale={self.scale!r}, at={self.at}): only "
                        f"{' and '.join(_NEEDS_AT)} have one"
                    )
                ]
                if self.at is not None
                else []
            )
        if self.scale == "percentile" and not (self.at is not None and 50 < self.at < 100):
            return [
                (
                    f"uniform(scale='percentile', at={self.at}): say which, above 50 and below "
                    "100, such as 99.9; 100 is scale='absmax'"
                )
            ]
        if self.scale == "sigma" and not (self.at is not None and 0 < self.at < float("inf")):
            return [f"uniform(scale='sigma', at={self.at}): say how many, such as 3.0"]
        return []

    def __repr__(self) -> str:
        late = (
            ("scale", "at") if self.scale == "absmax" else () if self.at is not None else ("at",)
        )  # printed only where they are set
        names = [field.name for field in fields(self) if field.name not in late]
        return f"uniform({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    @cached_property
    def traits(self) -> Traits:
        whole = 8 // math.gcd(self.bits, 8)  # codes that fill whole bytes
        random = self.rounding == "stochastic"
        return Traits(
            grain=whole if self.block == "row" else math.lcm(self.block or 1, whole),
            randomised=random,
            unbiased=random and self.step is None and self.scale in ("absmax", "norm"),
            row_wise=self.block == "row" or self.step is not None,
            # whole blocks, a header each, and no draws that count from where a span begins
            divides=self._has_kernels and self.block != 0 and not random,
            reads_int8=True,
        )

    @cached_property
    def _grid(self) -> Grid:
        """The arithmetic of the levels."""
        return grid_of(self.grid, self.bits, self.rounding, self.scale, self.at, self.step)

    def sections(self, spec: Spec) -> tuple[int, ...]:
        return self._header_nbytes(spec), reference.packed_nbytes(spec.numel, self.bits)

    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        if not spec.numel:
            return torch.empty(0, dtype=torch.uint8, device=x.device)
        key = self._key(spec, ctx)
        if self._has_kernels and self.scale == "absmax":
            return fast.grid_encode(x, *self._settings(spec), key)
        x = x.to(spec.work)
        if self._has_kernels:
            steps = self._steps(x, spec)
            return fast.grid_encode(x, *self._settings(spec), key, steps)
        random_bits = None if key is None else reference.random_bits(spec.numel, key).to(x.device)
        # 1. and 2. The grid of each block, and the codes on it.
        headers, codes = [], []
        for begin, m, size in self._cached_runs(spec, x.device):
            own = slice(begin, begin + m * size)
            rows = x[own].reshape(m, size)
            row_bits = None if random_bits is None else random_bits[own].view(m, size)
            header = self._grid.header(rows)
            headers.append(header)
            codes.append(self._grid.quantise(rows, header, row_bits).view(-1))
        # 3. All headers, number by number, and then the codes.
        head = [reference.as_bytes(torch.cat(each)) for each in zip(*headers, strict=True)]
        return torch.cat([*head, reference.pack(torch.cat(codes), self.bits)])

    def decode(
        self, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        check_nbytes(self, payload, self.nbytes(spec))
        if not spec.numel:
            return torch.empty(0, dtype=spec.work, device=payload.device)
        if self._has_kernels:
            return fast.grid_decode(payload, spec.numel, *self._settings(spec), spec.work)
        head = self._header_nbytes(spec)
        # Runs have blocks of one size each; the headers of all runs lie in one row, block after
        # block.
        header = self._grid.read_header(payload[:head], spec.work)
        codes = reference.unpack(payload[head:], spec.numel, self.bits)
        out, at = torch.empty(spec.numel, dtype=spec.work, device=payload.device), 0
        for begin, m, size in self._cached_runs(spec, payload.device):
            own = slice(begin, begin + m * size)
            block_header = tuple(each[at : at + m] for each in header)
            values = self._grid.dequantise(codes[own].view(m, size), block_header, spec.work)
            out[own] = values.view(-1)
            at += m
        return out

    def fill(
        self, out: Tensor, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> None:
        if self._has_kernels and spec.numel:
            check_nbytes(self, payload, self.nbytes(spec))
            fast.grid_decode(payload, spec.numel, *self._settings(spec), spec.work, out)
        else:
            super().fill(out, payload, spec, state, ctx, sender)

    def accumulate(
        self,
        total: Tensor,
        payload: Tensor,
        spec: Spec,
        state: State,
        ctx: RankContext,
        sender: int,
    ) -> None:
        if self._has_kernels and spec.numel:
            check_nbytes(self, payload, self.nbytes(spec))
            fast.grid_accumulate(total, payload, *self._settings(spec))
        else:
            super().accumulate(total, payload, spec, state, ctx, sender)

    def encode_with_residual(
        self, x: Tensor, residual: Tensor, decay: float, spec: Spec, state: State, ctx: RankContext
    ) -> EncodedWithResidual:
        # One kernel pass adds, encodes and subtracts; other grids take the steps one by one.
        if not self._has_kernels or self.scale != "absmax" or not spec.numel:
            return super().encode_with_residual(x, residual, decay, spec, state, ctx)
        settings = (*self._settings(spec), self._key(spec, ctx))
        payload, new_residual, finite = fast.grid_encode_with_residual(
            x, residual, decay, *settings
        )
        packet = Packet.of(payload, self, spec, state, ctx)
        return EncodedWithResidual(
            packet, new_residual, finite, lambda: packet.open(payload, ctx.rank)
        )

    def encode_sum(
        self,
        payloads: Sequence[tuple[int, Tensor]],
        spec: Spec,
        state: State,
        ctx: RankContext,
        sum_ctx: RankContext,
    ) -> Tensor:
        if not self._has_kernels or self.scale != "absmax" or not spec.numel:
            return super().encode_sum(payloads, spec, state, ctx, sum_ctx)
        # Payloads are added and encoded again in one pass, with the draws of the sum's own key.
        nbytes = self.nbytes(spec)
        for _, payload in payloads:
            if payload.numel() != nbytes:
                check_nbytes(self, payload, nbytes)
        settings = (*self._settings(spec), self._key(spec, sum_ctx), spec.work)
        return fast.grid_sum_encode([payload for _, payload in payloads], spec.numel, *settings)

    def levels(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the lowest level of each block and its step: (m, B) -> (m,), (m,) float64."""
        return self._grid.levels(self._grid.header(rows))

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        x, error = x.to(spec.work), torch.zeros(spec.numel, dtype=torch.float64)
        for begin, m, size in self._runs(spec):
            own = slice(begin, begin + m * size)
            error[own] = self._grid.error_bound(x[own].reshape(m, size)).view(-1)
        return error

    @property
    def _has_kernels(self) -> bool:
        """Return whether `kernels.fast` does all of it: steps of equal blocks, on a grid around
        zero."""
        return self.step is None and self.block != "row" and isinstance(self._grid, Symmetric)

    def _settings(self, spec: Spec) -> tuple[int, int, reference.Grid]:
        """Return the block, the bits and the grid, as the kernels take them."""
        assert self.block != "row"
        assert isinstance(self._grid, Symmetric)
        return length(self.block, spec), self.bits, self._grid.kind

    def _key(self, spec: Spec, ctx: RankContext) -> reference.Key | None:
        return ctx.rng_key(spec) if self.rounding == "stochastic" else None

    def _runs(self, spec: Spec) -> Iterator[Run]:
        """The blocks of a span; a fixed step takes it in runs of any length."""
        return runs(spec, self.block if self.step is None else _AT_ONCE)

    def _cached_runs(self, spec: Spec, device: torch.device) -> Iterator[Run]:
        """Yield runs of whole blocks that stay in a CPU's cache from one operation to the next."""
        for begin, m, size in self._runs(spec):
            some = max(_AT_ONCE // size, 1) if device.type == "cpu" else m
            for at in range(0, m, some):
                yield begin + at * size, min(some, m - at), size

    def _steps(self, x: Tensor, spec: Spec) -> Tensor:
        """Return the step of each block: (m,)."""
        cut_runs = self._cached_runs(spec, x.device)
        cut = [x[at : at + m * size].reshape(m, size) for at, m, size in cut_runs]
        return torch.cat([self._grid.header(rows)[0] for rows in cut])

    def _header_nbytes(self, spec: Spec) -> int:
        """Return the bytes of what is sent besides codes: the numbers of all blocks."""
        return sum(m for _, m, _ in self._runs(spec)) * self._grid.header_nbytes(spec.work)
