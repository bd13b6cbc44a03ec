"""Quantise values to one bit: Q(v) = s · sign(v).

Per block of B values s = mean|v|, the scale that makes ||v - s · sign(v)|| smallest; the payload is
m scales (one a block) and n signs. Steps:
    1. s of each block.
    2. one bit a value: 1 where v < 0 (a zero counts as positive).
    3. bits packed, 8 a byte.
||Q(v) - v||² = ||v||² - B · s² = (1 - δ) ||v||² with δ = ||v||₁² / (B ||v||₂²): of a normal block's
squared length 2/π = 0.64 arrives. It is biased: alone it may stall or diverge (Karimireddy et al.
2019, section 3), so it belongs in `feedback(…)`, which is 1-bit SGD.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

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
from thinwire.what.scalar._levels import length, rounding_slack


@dataclass(frozen=True)
class sign(Sectioned):
    """One bit a value and the mean magnitude of each block: ceil(n/8) + 4·ceil(n/B) bytes (8· for
    float64 buckets).

    Args:
        block: values that share a scale; 0 means the whole span.

    Raises:
        StrategyError: a block below 0.

    A block that holds a NaN or an infinity decodes to NaN throughout.

    Example:
        >>> spec = Spec((), 0, 1024, torch.float32)
        >>> sign(block=256).nbytes(spec)
        144

    Source: 1-bit SGD (Seide et al. 2014); EF-signSGD (Karimireddy et al. 2019, arXiv:1901.09847);
    1-bit Adam (Tang et al. 2021, arXiv:2102.02888). Differs from the papers: Seide's two levels a
    column are ±s here; Karimireddy scales a layer, this a block; it is not signSGD with majority
    vote (Bernstein et al. 2018, arXiv:1802.04434): magnitudes travel, and sums are sums, not votes.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "sign(block=0)",
        "sign(block=30)",
        "sign()",
    )

    block: int = 256

    def __post_init__(self) -> None:
        if self.block < 0:
            raise StrategyError(
                f"sign(block={self.block}): a block has at least 1 value; give a positive block, "
                "or 0 for the whole span"
            )

    @cached_property
    def traits(self) -> Traits:
        grain = math.lcm(self.block or 1, 8)
        return Traits(grain=grain, divides=self.block > 0, reads_int8=True)

    def sections(self, spec: Spec) -> tuple[int, ...]:
        scales = self._scales(spec) * spec.work.itemsize
        return scales, reference.packed_nbytes(spec.numel, 1)

    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        if not spec.numel:
            return torch.empty(0, dtype=torch.uint8, device=x.device)
        return fast.sign_encode(x, length(self.block, spec))

    def decode(
        self, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        check_nbytes(self, payload, self.nbytes(spec))
        if not spec.numel:
            return torch.empty(0, dtype=spec.work, device=payload.device)
        return fast.sign_decode(payload, spec.numel, length(self.block, spec), spec.work)

    def fill(
        self, out: Tensor, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> None:
        check_nbytes(self, payload, self.nbytes(spec))
        if spec.numel:
            fast.sign_decode(payload, spec.numel, length(self.block, spec), spec.work, out)

    def accumulate(
        self,
        total: Tensor,
        payload: Tensor,
        spec: Spec,
        state: State,
        ctx: RankContext,
        sender: int,
    ) -> None:
        check_nbytes(self, payload, self.nbytes(spec))
        if spec.numel:
            fast.sign_accumulate(total, payload, length(self.block, spec))

    def encode_with_residual(
        self, x: Tensor, residual: Tensor, decay: float, spec: Spec, state: State, ctx: RankContext
    ) -> EncodedWithResidual:
        if not spec.numel:
            return super().encode_with_residual(x, residual, decay, spec, state, ctx)
        payload, new_residual, finite = fast.sign_encode_with_residual(
            x, residual, decay, length(self.block, spec)
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
        # Every payload is checked before the kernel reads any.
        nbytes = self.nbytes(spec)
        for _, payload in payloads:
            if payload.numel() != nbytes:
                check_nbytes(self, payload, nbytes)
        if not spec.numel:
            return payloads[0][1].clone()
        return fast.sign_sum_encode(
            [payload for _, payload in payloads], spec.numel, length(self.block, spec), spec.work
        )

    def _scales(self, spec: Spec) -> int:
        """Return the scales sent: one a block."""
        return -(-spec.numel // length(self.block, spec))

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        size = reference.to_blocks(x.double().abs(), length(self.block, spec))
        scales = reference.block_means(size, spec.numel)[:, None] if spec.numel else size
        error = (size - scales).abs() + rounding_slack(scales, 1.0, spec)
        return error.reshape(-1)[: spec.numel]
