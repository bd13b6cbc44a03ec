"""Send only the updates that change how the next forward pass sees the weights.

Training in bfloat16 reads float32 weights through a cast. An update that is too small to change the
cast value is invisible to the next forward pass. Steps, with base values w that every rank holds
(the anchor of `deltas`) and K ranks:
    1. u = K · x, this rank's own update, as contributions of equal ranks are 1/K of it
    2. an entry is visible where cast(w - u) differs from cast(w)
    3. send the indices and float32 values of visible entries; the rest is left for `feedback(…)`
With `feedback`, what is left adds up until it is visible, so nothing is lost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from thinwire.core import Leaf, RankContext, Spec, State, Traits
from thinwire.errors import StrategyError
from thinwire.what.sparse._picked import Picked

_VIEWS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class visible(Picked):
    """Send the entries that change the 16-bit view of the base values, as many as there are.

    The payload is a count, indices (packed, a bitmap or Elias–Fano) and values; no bytes where
    nothing is visible. State: the base values, 4 bytes a value.

    Args:
        view: "bf16" or "fp16", the type in which the forward pass reads the weights.

    Raises:
        StrategyError: another view. With a strategy: a target without base values.

    Example:
        >>> spec, ctx = Spec((), 0, 3, torch.float32), RankContext(0, (0,), step=0, seed=0)
        >>> codec = visible()
        >>> state = codec.init(spec, ctx)  # a base of ones
        >>> x = torch.tensor([0.5, 0.001, -0.001])  # bf16 has 0.996, 1, 1.008
        >>> codec.decode(codec.encode(x, spec, state, ctx), spec, state, ctx, 0)
        tensor([0.5000, 0.0000, 0.0000])

    Source: Miahi & Belilovsky 2026, arXiv:2602.03839 (PULSELoCo's gate).
    Differs from the paper: where ranks' weights differ, K · x is not the rank's own update, but K
    times its weighted one.
    """

    examples: ClassVar[tuple[str, ...]] = ("visible()",)

    view: Literal["bf16", "fp16"] = "bf16"

    def __post_init__(self) -> None:
        if self.view not in _VIEWS:
            raise StrategyError(f"visible(view={self.view!r}): choose 'bf16' or 'fp16'")

    @cached_property
    def traits(self) -> Traits:
        return replace(super().traits, needs_base=True)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the view."""
        return _VIEWS[self.view]

    def init(self, spec: Spec, ctx: RankContext) -> State:
        # ones until the engine puts the base there, before the first launch
        ones = torch.ones(spec.numel, dtype=spec.work)
        return State({"base": Leaf(ones, "replicated", spec)})

    def _pick(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> tuple[Tensor, Tensor]:
        base = state["base"].flat
        # 1. the weights as they are, and as this rank's own update would leave them
        after = torch.sub(base, x, alpha=ctx.world)
        # 2. a NaN differs from everything, itself included, so it is always sent
        indices = (after.to(self.dtype) != base.to(self.dtype)).nonzero().squeeze(1)
        # 3. values go as they are
        return indices, x[indices]

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        # beside a base of ones: the view's next smaller value is eps / 2 away, half of it is lost
        sizes = x.double().abs()
        return torch.where(sizes * ctx.world <= torch.finfo(self.dtype).eps / 2, sizes, 0)
