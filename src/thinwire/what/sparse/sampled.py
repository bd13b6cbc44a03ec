"""Send about a fraction `density` of the entries, by a threshold that is kept while it serves:
nearly `topk`, without its search.

Steps, with t the last threshold and d = density · n:
    1. pick all |v| >= t (and every NaN), c of them: one pass. Where d/band <= c <= d·band, that is
       all: t stays (hysteresis)
    2. else look at every `stride`-th |v|, from an offset that moves with the step; t is the one
       that a share `density` of them reaches, and step 1 is taken again
    3. where c is still outside, the sample was not like the span: pick the d largest instead, t is
       the smallest of them
The threshold is a rank's own and does not travel: a payload says what it holds. In another world or
bucket layout it is sampled anew. (Lin et al. 2018, arXiv:1712.01887, "hierarchical sampling"; Aji &
Heafield 2017, arXiv:1704.05021.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from thinwire.core import Leaf, RankContext, Spec, State
from thinwire.errors import StrategyError
from thinwire.kernels import fast
from thinwire.what.sparse._picked import Picked
from thinwire.what.sparse._share import count_of

_ENOUGH = 256  # sampled values above t: the count is then right to 6 % (one standard deviation)


@dataclass(frozen=True)
class sampled(Picked):
    """About a share `density` of the entries, the largest: a count, indices and values.

    Args:
        density: the share that is wanted, in (0, 1].
        stride: at most every how many-th value is looked at for t; fewer where the sample would be
            too small to tell.
        band: by what factor the density may miss before t is sought anew, above 1. No payload has
            more than `band` times the entries.

    Raises:
        StrategyError: density outside (0, 1], stride < 1, band of 1 or less.

    Zeros are never sent. NaN and infinities are. State: one number a span; behind another transform
    (`topk(…) >> sampled(…)`), where indices move from step to step, none, and t is sampled each
    time.

    Example:
        >>> spec = Spec((), 0, 65536, torch.float32)
        >>> # 984 values of 4 bytes, indices of 8 bits, a count of 8 bytes
        >>> sampled(0.01).max_nbytes(spec)
        4933
    """

    examples: ClassVar[tuple[str, ...]] = (
        "sampled(0.3, stride=4)",
        "sampled(0.1)",
    )

    density: float
    stride: int = 64
    band: float = 1.5

    def __post_init__(self) -> None:
        reasons = []
        if not 0 < self.density <= 1:
            reasons.append(f"sampled(density={self.density}): a share lies in (0, 1]")
        if self.stride < 1:
            reasons.append(
                f"sampled(stride={self.stride}): it looks at every value (1) or at fewer"
            )
        if not 1 < self.band < math.inf:
            reasons.append(f"sampled(band={self.band}): a factor above 1, such as 1.5")
        if reasons:
            raise StrategyError(reasons)

    def max_core_numel(self, spec: Spec) -> int:
        return max(self._wanted(spec), count_of(min(1.0, self.density * self.band), spec.numel))

    def init(self, spec: Spec, ctx: RankContext) -> State:
        if not spec.parts:
            return State()
        return State(
            {"bar": Leaf(torch.zeros((), dtype=spec.work, device="cpu"), "private", part=spec.key)}
        )

    def _pick(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> tuple[Tensor, Tensor]:
        """Return the indices that are sent, ascending, and their values; the threshold is kept in
        the state."""
        # 1. The last threshold serves while about as many values reach it as are wanted.
        leaf = state.leaves.get("bar")
        if leaf is not None and leaf.value > 0:
            picked = self._above(x, leaf.value, spec)
            if picked is not None:
                return picked
        # 2. Else take one from a sample of this span.
        bar = self._sampled(x, spec, ctx)
        picked = self._above(x, bar, spec)
        # 3. The sample was not like the span: search exactly.
        if picked is None:
            indices, values = (each[0] for each in fast.largest(x[None], self._wanted(spec)))
            nonzero = values != 0
            bar, picked = values.abs().amin(), (indices[nonzero], values[nonzero])
        # Only a finite threshold can serve again.
        if leaf is not None and bar.isfinite():
            leaf.value = bar.to(leaf.value)
        return picked

    def _sampled(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        """Return the threshold that a share `density` of a sample reaches."""
        stride = max(1, min(self.stride, int(self.density * spec.numel) // _ENOUGH))
        sample = x[ctx.step % stride :: stride].abs()
        return sample.topk(count_of(self.density, sample.numel()), sorted=False).values.amin()

    def _above(self, x: Tensor, bar: Tensor, spec: Spec) -> tuple[Tensor, Tensor] | None:
        """Return the indices and values of what reaches a threshold; `None` where they are too many
        or too few."""
        picked = fast.above(x, bar, self.max_core_numel(spec))
        return (
            None
            if isinstance(picked, int) or picked[0].numel() < self._wanted(spec) / self.band
            else picked
        )

    def _wanted(self, spec: Spec) -> int:
        return count_of(self.density, spec.numel)

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        x = x.double().abs()
        # these and more are sent, with room for one NaN
        sure = math.ceil(count_of(self.density, spec.numel) / self.band) - 1
        return torch.where(x <= x.topk(sure).values[-1], x, 0) if sure > 0 else x
