"""Scalar quantisation on a uniform grid: Q(v) = Δ · round(v / Δ).

Per block of B values, Δ = max|v| / L with L the largest level, and the payload is m steps (one a block) and n codes of b bits.
Steps:
    1. Δ of each block (or one fixed Δ, never sent).
    2. code = round(v/Δ) to nearest, or floor(v/Δ + u), u uniform in [0, 1), which is unbiased: E[Q(v)] = v.
    3. codes packed, b bits each.
|Q(v) - v| <= Δ/2 to nearest, < Δ stochastic.

Source: QSGD (Alistarh et al. 2017, arXiv:1610.02132) for stochastic rounding; blocks as in 8-bit optimisers (Dettmers et al. 2022,
arXiv:2110.02861). Differs from QSGD: the scale is a block's largest magnitude, not its norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from thinwire.core import Coder, Seat, Spec, State
from thinwire.errors import StrategyError
from thinwire.kernels import reference


@dataclass(frozen=True)
class uniform(Coder):
    """b-bit values on a uniform grid, one step a block: ceil(n·b/8) + 4·ceil(n/B) bytes (8· for float64 buckets).

    Args:
        bits: 8, 4 or 2.
        block: values that share a step; 0 means the whole span.
        rounding: "nearest", or "stochastic" (unbiased, larger error; drawn by (seed, step, key, rank)).
        step: a fixed Δ in the units of a contribution (a gradient times its weight share), clipped at ±LΔ; nothing but codes is sent.
        grid: "tread" has a level at zero (2^b - 1 levels); "rise" has none and 2^b levels, for what has no small values (after top-k).

    Raises:
        StrategyError: an argument outside the above, or a fixed step on a grid without the spare code that marks a non-finite value.

    A block that holds a NaN or an infinity decodes to NaN throughout (with a fixed step: that value alone).

    Example:
        >>> spec = Spec((), 0, 1024, torch.float32)
        >>> uniform(bits=4, block=256).nbytes(spec)
        528
    """

    bits: Literal[8, 4, 2] = 8
    block: int = 256
    rounding: reference.Rounding = "nearest"
    step: float | None = None
    grid: reference.Grid = "tread"

    def __post_init__(self) -> None:
        reasons = []
        if self.bits not in (8, 4, 2):
            reasons.append(f"uniform(bits={self.bits}): choose 8, 4 or 2")
        if self.block < 0:
            reasons.append(f"uniform(block={self.block}): a block has at least 1 value, or 0 for the whole span")
        if self.rounding not in ("nearest", "stochastic"):
            reasons.append(f"uniform(rounding={self.rounding!r}): choose 'nearest' or 'stochastic'")
        if self.grid not in ("tread", "rise"):
            reasons.append(f"uniform(grid={self.grid!r}): choose 'tread' or 'rise'")
        if self.step is not None and not 0 < self.step < float("inf"):
            reasons.append(f"uniform(step={self.step}): a fixed step is positive and finite")
        if self.step is not None and self.grid == "rise":
            reasons.append("uniform(step=…, grid='rise'): every code is taken, none is left to mark a NaN; use grid='tread'")
        if reasons:
            raise StrategyError(reasons)

    @property
    def grain(self) -> int:
        return math.lcm(self.block or 1, 8 // self.bits)

    def nbytes(self, spec: Spec) -> int:
        return self._steps(spec) * spec.work.itemsize + reference.packed_nbytes(spec.numel, self.bits)

    def encode(self, x: Tensor, spec: Spec, state: State, seat: Seat) -> Tensor:
        if not spec.numel:
            return torch.empty(0, dtype=torch.uint8, device=x.device)
        noise = None
        if self.rounding == "stochastic":
            draws = seat.draws(spec, shared=False)
            noise = reference.to_blocks(torch.rand(spec.numel, generator=draws, dtype=spec.work).to(x.device), self._block(spec))
        blocks = reference.to_blocks(x.to(spec.work), self._block(spec))
        if self.step is not None:
            step = blocks.new_full((1, 1), self.step)
            codes = reference.quantise(blocks.nan_to_num(0, 0, 0), step, self.bits, self.grid, noise)
            codes.masked_fill_(~blocks.isfinite(), 2**self.bits - 1)  # the code that a grid with a zero leaves over
            return reference.pack(codes.view(-1)[: spec.numel], self.bits)
        steps = reference.block_steps(blocks, self.bits, self.grid)
        codes = reference.quantise(blocks, steps[:, None], self.bits, self.grid, noise)
        return torch.cat([reference.as_bytes(steps), reference.pack(codes.view(-1)[: spec.numel], self.bits)])

    def decode(self, payload: Tensor, spec: Spec, state: State, seat: Seat, sender: int) -> Tensor:
        self.expect(payload, self.nbytes(spec))
        if not spec.numel:
            return torch.empty(0, dtype=spec.work, device=payload.device)
        head = self._steps(spec) * spec.work.itemsize
        flat = reference.unpack(payload[head:], spec.numel, self.bits)
        codes = reference.to_blocks(flat, self._block(spec))
        if self.step is not None:
            values = reference.dequantise(
                codes, torch.full((1, 1), self.step, dtype=spec.work, device=payload.device), self.bits, self.grid
            )
            values.masked_fill_(codes == 2**self.bits - 1, float("nan"))
        else:
            steps = reference.from_bytes(payload[:head], spec.work)
            values = reference.dequantise(codes, steps[:, None], self.bits, self.grid)
        return values.view(-1)[: spec.numel]

    def _block(self, spec: Spec) -> int:
        return self.block or max(spec.numel, 1)

    def _steps(self, spec: Spec) -> int:
        """Steps sent: one a block."""
        return 0 if self.step is not None else -(-spec.numel // self._block(spec))
