"""Share what the codecs that pick single entries of a span have in common: indices as side bytes,
values as the core."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from thinwire.core import RankContext, Spec, State, Traits
from thinwire.what.sparse import _indices
from thinwire.what.wrap.chain import Transform


class Picked(Transform):
    """A transform whose core is some entries, as many as the data decide; it gives `_pick`."""

    @cached_property
    def traits(self) -> Traits:
        return Traits(drops=True)

    def core_numel(self, spec: Spec) -> None:
        return None

    def side_nbytes(self, spec: Spec, core_numel: int) -> int:
        return _indices.smallest_nbytes(core_numel, spec.numel)

    def split(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> tuple[Tensor, Tensor]:
        x = x.to(spec.work).contiguous()
        if not spec.numel:
            return x, torch.empty(0, dtype=torch.uint8, device=x.device)
        indices, values = self._pick(x, spec, state, ctx)
        return values, _indices.write(indices[None], spec.numel)

    def join(
        self, core: Tensor, side: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        indices = _indices.read(side, core.numel(), spec.numel, 1, self)
        out = torch.zeros(spec.numel, dtype=spec.work, device=core.device)
        out[indices[0]] = core
        return out

    @abstractmethod
    def _pick(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> tuple[Tensor, Tensor]:
        """The indices that are sent of x (spec.numel,) spec.work, ascending, and their values: (c,)
        each."""
