"""Sparsification by a threshold: every entry with |v| >= t, however many there are.

The payload's size depends on the data, down to no bytes at all. What is left out is below t in magnitude, so the error is at most t
each; use `feedback(…)` so that it is sent later. (Strom 2015, "Scalable distributed DNN training using commodity GPU cloud computing".)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from thinwire.core import Seat, Spec, State
from thinwire.errors import StrategyError
from thinwire.kernels import reference
from thinwire.what.chain import Transform, gather_indices


@dataclass(frozen=True)
class threshold(Transform):
    """Every entry of magnitude `value` or more, and every NaN: a count, packed places and values; nothing where there are none.

    Args:
        value: t, in the units of a contribution (a gradient times its weight share), above 0.

    Raises:
        StrategyError: t is not positive and finite.

    Example:
        >>> spec = Spec((), 0, 1024, torch.float32)
        >>> threshold(0.5).nbytes(spec) is None, threshold(0.5).max_nbytes(spec)
        (True, 5384)
    """

    value: float

    def __post_init__(self) -> None:
        if not 0 < self.value < float("inf"):
            raise StrategyError(f"threshold(value={self.value}): a threshold is positive and finite")

    @property
    def drops(self) -> bool:
        return True

    def core_numel(self, spec: Spec) -> None:
        return None

    def side_nbytes(self, spec: Spec, core_numel: int) -> int:
        return reference.packed_nbytes(core_numel, self._bits(spec))

    def split(self, x: Tensor, spec: Spec, state: State, seat: Seat) -> tuple[Tensor, Tensor]:
        x = x.to(spec.work)
        places = (~(x.abs() < self.value)).nonzero().view(-1)
        return x[places], reference.pack(places, self._bits(spec))

    def join(self, core: Tensor, side: Tensor, spec: Spec, state: State, seat: Seat, sender: int) -> Tensor:
        places = gather_indices(side, core.numel(), self._bits(spec), spec.numel, self)
        out = torch.zeros(spec.numel, dtype=spec.work, device=core.device)
        out[places] = core
        return out

    def _bits(self, spec: Spec) -> int:
        return max(1, (spec.numel - 1).bit_length())
