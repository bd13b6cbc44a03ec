"""Scalar quantisation on a uniform grid: Q(v) = Δ · round(v / Δ).

Per block of B values, Δ = c / L with L the largest level and c the clip: max|v|, or less, where
large values are cut. The payload is m steps (one a block) and n codes of b bits. Steps:
    1. Δ of each block (or one fixed Δ, never sent).
    2. code = round(v/Δ) to nearest, or floor(v/Δ + u), u uniform in [0, 1), which is unbiased:
       E[Q(v)] = v where nothing is cut.
    3. codes packed, b bits each.
|Q(v) - v| <= Δ/2 to nearest, < Δ stochastic, for |v| <= c; what is larger becomes ±c. On the grid
"affine" the levels are low + Δ · code from a lowest to a highest value of the block, and m lowest
values go with the m steps; on "point" they are Δ · (code - z), z the whole number that brings them
closest to that range, and m bytes of z go with the m steps.

Source: QSGD (Alistarh et al. 2017, arXiv:1610.02132) for stochastic rounding and "norm"; blocks as
in 8-bit optimisers (Dettmers et al. 2022, arXiv:2110.02861); "affine" with 6 sigma as in
INTELLECT-1 (Jaghouar et al. 2024, arXiv:2412.01152); "mse" as in post-training quantisation (Zhao
et al. 2019, arXiv:1901.09504). Differs from QSGD: a block's scale is its largest magnitude, unless
"norm" is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from thinwire.core import (
    Coder,
    EncodedWithResidual,
    Packet,
    RankContext,
    Spec,
    State,
    Traits,
    check_nbytes,
)
from thinwire.errors import StrategyError
from thinwire.kernels import fast, reference
from thinwire.what.scalar._levels import length
from thinwire.what.scalar._scales import (
    Block,
    Scale,
    affine_grid,
    point_grid,
    quantise_affine,
    quantise_point,
    runs,
    symmetric_steps,
)

_GRIDS = ("tread", "rise", "affine", "point")
_SIDED = ("affine", "point")  # from a lowest to a highest value
_NEEDS_AT = ("percentile", "sigma")
_LEAST, _MOST = 1e-37, 1e37  # what a float32 holds, and its multiples with it


@dataclass(frozen=True)
class uniform(Coder):
    """b-bit values on a uniform grid, one step a block: ceil(n·b/8) + 4·ceil(n/B) bytes (8· for
    float64 buckets; "affine": twice that; "point": 1 more a block).

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
        >>> uniform(bits=3, scale="sigma", at=3.0)
        uniform(bits=3, block=256, rounding='nearest', step=None, grid='tread', scale='sigma', at=3.0)
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
    grid: Literal["tread", "rise", "affine", "point"] = "tread"
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
        if self.grid not in _GRIDS:
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
        if self.scale == "norm" and self.grid in _SIDED:
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
        )

    def nbytes(self, spec: Spec) -> int:
        return self._head(spec) + reference.packed_nbytes(spec.numel, self.bits)

    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        if not spec.numel:
            return torch.empty(0, dtype=torch.uint8, device=x.device)
        x, key = x.to(spec.work), self._key(spec, ctx)
        if self._plain:
            chosen = None if self.scale == "absmax" else self._steps(x, spec)
            return fast.grid_encode(x, self._block(spec), self.bits, self._around(), key, chosen)
        drawn = None if key is None else reference.random_bits(spec.numel, key).to(x.device)
        if self.step is not None:
            step = x.new_full((1, 1), self.step)
            codes = reference.quantise(
                x.nan_to_num(0, 0, 0)[None], step, self.bits, self._around(), drawn
            )[0]
            codes.masked_fill_(
                ~x.isfinite(), 2**self.bits - 1
            )  # the code that a grid with a zero leaves over
            return reference.pack(codes, self.bits)
        heads: list[tuple[Tensor, ...]] = []
        codes_of = []
        for begin, m, size in runs(spec, self.block):
            rows, row_bits = (
                None if flat is None else flat[begin : begin + m * size].reshape(m, size)
                for flat in (x, drawn)
            )
            assert rows is not None
            if self.grid == "point":
                zero, step = self._point(rows)
                codes_of.append(
                    quantise_point(rows, zero[:, None], step[:, None], self.bits, row_bits).view(-1)
                )
                heads.append((step, zero))
                continue
            low, step = self.levels(rows)
            if low is None:
                codes_of.append(
                    reference.quantise(
                        rows, step[:, None], self.bits, self._around(), row_bits
                    ).view(-1)
                )
            else:
                codes_of.append(
                    quantise_affine(rows, low[:, None], step[:, None], self.bits, row_bits).view(-1)
                )
            heads.append((step,) if low is None else (low, step))
        head = [reference.as_bytes(torch.cat(each)) for each in zip(*heads, strict=True)]
        return torch.cat([*head, reference.pack(torch.cat(codes_of), self.bits)])

    def decode(
        self, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        check_nbytes(self, payload, self.nbytes(spec))
        if not spec.numel:
            return torch.empty(0, dtype=spec.work, device=payload.device)
        if self._plain:
            return fast.grid_decode(
                payload, spec.numel, self._block(spec), self.bits, self._around(), spec.work
            )
        head = self._head(spec)
        codes = reference.unpack(payload[head:], spec.numel, self.bits)
        if self.step is not None:
            fixed = torch.full((1,), self.step, dtype=spec.work, device=payload.device)
            values = reference.dequantise(codes, fixed, self.bits, self._around())
            return values.masked_fill_(codes == 2**self.bits - 1, float("nan"))
        lows, steps, zeros = self._read(payload[:head], spec)
        out, at = torch.empty(spec.numel, dtype=spec.work, device=payload.device), 0
        for begin, m, size in runs(spec, self.block):
            rows, own = codes[begin : begin + m * size].view(m, size), slice(at, at + m)
            step = steps[own, None]
            if zeros is not None:
                values = (rows.to(spec.work) - zeros[own, None]).mul_(step)
            elif lows is None:
                values = reference.dequantise(rows, step, self.bits, self._around())
            else:
                half = rows.to(spec.work).mul_(step / 2)
                values = half + lows[own, None] + half  # highest - lowest may be no float
            out[begin : begin + m * size] = values.view(-1)
            at += m
        return out

    def fill(
        self, out: Tensor, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> None:
        if self._plain and spec.numel:
            check_nbytes(self, payload, self.nbytes(spec))
            fast.grid_decode(
                payload, spec.numel, self._block(spec), self.bits, self._around(), spec.work, out
            )
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
        if self._plain and spec.numel:
            check_nbytes(self, payload, self.nbytes(spec))
            fast.grid_accumulate(total, payload, self._block(spec), self.bits, self._around())
        else:
            super().accumulate(total, payload, spec, state, ctx, sender)

    def encode_with_residual(
        self, x: Tensor, before: Tensor, decay: float, spec: Spec, state: State, ctx: RankContext
    ) -> EncodedWithResidual:
        if not self._plain or self.scale != "absmax" or not spec.numel:
            return super().encode_with_residual(x, before, decay, spec, state, ctx)
        settings = (self._block(spec), self.bits, self._around(), self._key(spec, ctx))
        payload, left, finite = fast.grid_encode_left(x.to(spec.work), before, decay, *settings)
        packet = Packet.of(payload, self, spec, state, ctx)
        return EncodedWithResidual(packet, left, finite, lambda: packet.open(payload, ctx.rank))

    def encode_sum(
        self,
        payloads: Sequence[tuple[int, Tensor]],
        spec: Spec,
        state: State,
        ctx: RankContext,
        sum_ctx: RankContext,
    ) -> Tensor:
        if not self._plain or self.scale != "absmax" or not spec.numel:
            return super().encode_sum(payloads, spec, state, ctx, sum_ctx)
        for _, payload in payloads:
            check_nbytes(self, payload, self.nbytes(spec))
        settings = (
            spec.numel,
            self._block(spec),
            self.bits,
            self._around(),
            self._key(spec, sum_ctx),
            spec.work,
        )
        return fast.grid_sum_encode([payload for _, payload in payloads], *settings)

    @property
    def _plain(self) -> bool:
        """A step for each of equal blocks, on a grid around zero: what the kernels do."""
        return self.step is None and self.grid not in _SIDED and self.block != "row"

    def _key(self, spec: Spec, ctx: RankContext) -> reference.Key | None:
        return ctx.rng_key(spec) if self.rounding == "stochastic" else None

    def _steps(self, x: Tensor, spec: Spec) -> Tensor:
        """The step of each block: (m,)."""
        cut = [
            (x[begin : begin + m * size].reshape(m, size))
            for begin, m, size in runs(spec, self.block)
        ]
        return torch.cat([self.levels(rows)[1] for rows in cut])

    def _block(self, spec: Spec) -> int:
        assert self.block != "row"
        return length(self.block, spec)

    def levels(self, rows: Tensor) -> tuple[Tensor | None, Tensor]:
        """The lowest level of each block (on "affine" and "point") and its step: (m, B) -> (m,),
        (m,)."""
        if self.grid == "affine":
            return affine_grid(rows, self.bits, self.scale, self.at)
        if self.grid == "point":
            zero, step = self._point(rows)
            return -step * zero, step
        return None, symmetric_steps(rows, self.bits, self._around(), self.scale, self.at)

    def _point(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The code of zero and the step. To nearest, half a step beyond the last level is as near
        as between two."""
        cover = self.rounding == "stochastic" and self.scale not in ("range", "mse")
        return point_grid(rows, self.bits, self.scale, self.at, cover)

    def _around(self) -> reference.Grid:
        """The grid around zero; the others have their own arithmetic."""
        assert self.grid in ("tread", "rise")
        return self.grid

    def _head(self, spec: Spec) -> int:
        """Bytes of the steps, on "affine" of the lowest levels, on "point" of the codes of zero."""
        if self.step is not None:
            return 0
        if self.block != "row":
            blocks = -(-spec.numel // length(self.block, spec)) if spec.numel else 0
        else:
            blocks = sum(m for _, m, _ in runs(spec, self.block))
        more = {"affine": spec.work.itemsize, "point": 1}.get(self.grid, 0)
        return blocks * (spec.work.itemsize + more)

    def _read(self, head: Tensor, spec: Spec) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """The lowest levels (on "affine"), the steps, and the codes of zero (on "point"): (m,)
        each."""
        if self.grid == "point":
            m = head.numel() // (spec.work.itemsize + 1)
            return None, reference.from_bytes(head[:-m], spec.work), head[-m:].to(spec.work)
        numbers = reference.from_bytes(head, spec.work)
        if self.grid == "affine":
            return numbers[: numbers.numel() // 2], numbers[numbers.numel() // 2 :], None
        return None, numbers, None

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        x, info = x.to(spec.work), torch.finfo(spec.work)
        reach = 0.5 if self.rounding == "nearest" else 1.0  # of a step
        if self.step is not None:
            size, last = x.double().abs(), (2 ** (self.bits - 1) - 1) * self.step
            inside = torch.full_like(size, reach * self.step)
            return torch.maximum(inside, size - last) + 4 * info.eps * size
        error = torch.zeros(spec.numel, dtype=torch.float64)
        count = 2**self.bits - 1 - (self.grid == "tread")
        for begin, m, width in runs(spec, self.block):
            rows = x[begin : begin + m * width].reshape(m, width)
            lows, deltas = self.levels(rows)
            rows, steps = rows.double(), deltas.double()[:, None]
            low = -count / 2 * steps if lows is None else lows.double()[:, None]
            # what lies beyond the first or last level ends there
            cut = torch.maximum(low - rows, rows - low - count * steps)
            absmax = rows.abs().amax(1, keepdim=True)
            tiny = 2 * (count + 1) * info.smallest_normal * info.eps
            slack = (8 * info.eps * absmax + tiny) * (absmax > 0)
            error[begin : begin + m * width] = (torch.maximum(reach * steps, cut) + slack).view(-1)
        return error
