"""Send the same k entries on every rank, drawn at random anew each step from a shared seed.

Nobody sends indices, and payloads can be added unopened, so the transport's own all-reduce carries
them. The span is cut into k strata of equal width and one entry is drawn from each: every entry is
drawn with probability k/n, to within a width's rounding, and no entry twice. With `unbiased`, a
value is scaled by the width of its stratum (n/k, to within 1): E[Q(v)] = v. Without, use
`feedback(…)`. (Wangni et al. 2018, arXiv:1710.09854; Stich et al. 2018, arXiv:1809.07599.) Differs
from the paper: strata instead of a draw without replacement from the whole, which costs O(k)
instead of O(n) and has no larger variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from thinwire.core import Outcome, RankContext, Rounds, Spec, State, Traits
from thinwire.errors import StrategyError
from thinwire.what.sparse._share import count_of, wrong
from thinwire.what.wrap.chain import Transform


@dataclass(frozen=True)
class randomk(Transform):
    """Send k random entries, the same on all ranks; summable: k values and no indices.

    Args:
        k: how many (int), or what share (float in (0, 1]), rounded up.
        unbiased: scale each value by the width of its stratum, the inverse of its probability.

    Raises:
        StrategyError: k is not positive, or a share above 1.

    A NaN or an infinity that is not drawn is left out, as any other value.

    Example:
        >>> spec = Spec((), 0, 1000, torch.float32)
        >>> randomk(0.01).nbytes(spec)
        40
    """

    examples: ClassVar[tuple[str, ...]] = (
        "randomk(0.1)",
        "randomk(20, unbiased=True)",
    )

    k: int | float
    unbiased: bool = False

    def __post_init__(self) -> None:
        reasons = wrong("randomk", self.k)
        if reasons:
            raise StrategyError(reasons)

    @cached_property
    def traits(self) -> Traits:
        return Traits(
            summable=True,
            drops=True,
            partial=not self.unbiased,
            randomised=True,
            unbiased=self.unbiased,
        )

    def core_numel(self, spec: Spec) -> int:
        return count_of(self.k, spec.numel)

    def side_nbytes(self, spec: Spec, core_numel: int) -> int:
        return 0

    def split(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> tuple[Tensor, Tensor]:
        core = x.to(spec.work)[self._lot(spec, ctx)[0].to(x.device)]
        return core, torch.empty(0, dtype=torch.uint8, device=x.device)

    def join(
        self, core: Tensor, side: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        out = torch.zeros(spec.numel, dtype=spec.work, device=core.device)
        indices, widths = self._lot(spec, ctx)
        out[indices.to(core.device)] = core * widths.to(core) if self.unbiased else core
        return out

    def rounds(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Rounds:
        outcome = yield from super().rounds(x, spec, state, ctx)
        return Outcome(
            outcome.total,
            outcome.sent,
            (lambda: self._drawn(spec, ctx, x.device)) if self.traits.partial else None,
        )

    def _drawn(self, spec: Spec, ctx: RankContext, device: torch.device) -> Tensor:
        """Return which entries were drawn: (spec.numel,) bool."""
        mask = torch.zeros(spec.numel, dtype=torch.bool, device=device)
        mask[self._lot(spec, ctx)[0].to(device)] = True
        return mask

    def _lot(self, spec: Spec, ctx: RankContext) -> tuple[Tensor, Tensor]:
        """Draw one index in each of k strata, ascending; return them and the strata's widths: (k,)
        int64 each."""
        # One draw a stratum: indices are distinct and ascending without a sort.
        k = self.core_numel(spec)
        edges = torch.arange(k + 1, dtype=torch.int64, device="cpu") * spec.numel // max(k, 1)
        # `draw * widths` may round up to the width itself.
        widths = edges[1:] - edges[:-1]
        draw = torch.rand(
            k, generator=ctx.generator(spec, shared=True), dtype=torch.float64, device="cpu"
        )
        return edges[:-1] + torch.minimum((draw * widths).long(), widths - 1), widths

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        widest = -(-spec.numel // max(self.core_numel(spec), 1)) if self.unbiased else 1
        return x.double().abs() * max(1.0, widest - 1.0) * (1 + 1e-6)
