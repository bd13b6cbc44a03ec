"""Sparsification to a density, by a threshold that is estimated on a sample: nearly `topk`, without its search.

Steps:
    1. every `stride`-th |v|, from an offset that moves with the step; t is the one that a share `density` of them reaches
    2. pick all |v| >= t (and every NaN), c of them: one pass
    3. if c leaves the band [d/band, d·band] for d = density · n, the sample was not like the span: pick the d largest instead
Nothing is remembered: an estimate costs n/stride values, a check costs the count that is there anyway, and another world size or bucket
layout finds no stale threshold. (Lin et al. 2018, arXiv:1712.01887, "hierarchical sampling"; Aji & Heafield 2017, arXiv:1704.05021.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from thinwire.core import Seat, Spec, State
from thinwire.errors import StrategyError
from thinwire.what import _places
from thinwire.what._share import kept
from thinwire.what.chain import Transform

_ENOUGH = 256  # sampled values above t: the count is then right to 6 % (one standard deviation)


@dataclass(frozen=True)
class sampled(Transform):
    """About a share `density` of the entries, the largest: a count, places and values.

    Args:
        density: the share that is wanted, in (0, 1].
        stride: at most every how many-th value is looked at for t; fewer where the sample would be too small to tell.
        band: by what factor the density may miss before the search is exact, above 1. No payload has more than `band` times the entries.

    Raises:
        StrategyError: density outside (0, 1], stride < 1, band of 1 or less.

    Zeros are never sent. NaN and infinities are.

    Example:
        >>> spec = Spec((), 0, 65536, torch.float32)
        >>> sampled(0.01).max_nbytes(spec)  # 984 values of 4 bytes, places of 8 bits, a count of 8 bytes
        4933
    """

    density: float
    stride: int = 64
    band: float = 1.5

    def __post_init__(self) -> None:
        reasons = []
        if not 0 < self.density <= 1:
            reasons.append(f"sampled(density={self.density}): a share lies in (0, 1]")
        if self.stride < 1:
            reasons.append(f"sampled(stride={self.stride}): it looks at every value (1) or at fewer")
        if not 1 < self.band < math.inf:
            reasons.append(f"sampled(band={self.band}): a factor above 1, such as 1.5")
        if reasons:
            raise StrategyError(reasons)

    @property
    def drops(self) -> bool:
        return True

    def core_numel(self, spec: Spec) -> None:
        return None

    def max_core_numel(self, spec: Spec) -> int:
        return max(self._wanted(spec), kept(min(1.0, self.density * self.band), spec.numel))

    def side_nbytes(self, spec: Spec, core_numel: int) -> int:
        return _places.smallest_nbytes(core_numel, spec.numel)

    def split(self, x: Tensor, spec: Spec, state: State, seat: Seat) -> tuple[Tensor, Tensor]:
        x = x.to(spec.work)
        places = self._pick(x.abs(), spec, seat) if spec.numel else torch.empty(0, dtype=torch.int64, device=x.device)
        return x[places], _places.write(places.view(1, -1), spec.numel)

    def join(self, core: Tensor, side: Tensor, spec: Spec, state: State, seat: Seat, sender: int) -> Tensor:
        places = _places.read(side, core.numel(), spec.numel, 1, self)
        out = torch.zeros(spec.numel, dtype=spec.work, device=core.device)
        out[places[0]] = core
        return out

    def _pick(self, sizes: Tensor, spec: Spec, seat: Seat) -> Tensor:
        """The places that are sent, ascending."""
        stride = max(1, min(self.stride, int(self.density * spec.numel) // _ENOUGH))
        sample = sizes[seat.step % stride :: stride]
        bar = sample.topk(kept(self.density, sample.numel()), sorted=False).values.amin()
        places = (~(sizes < bar) & (sizes != 0)).nonzero().view(-1)
        if self._wanted(spec) / self.band <= places.numel() <= self.max_core_numel(spec):
            return places
        places = sizes.topk(self._wanted(spec), sorted=False).indices.sort().values
        return places[sizes[places] != 0]

    def _wanted(self, spec: Spec) -> int:
        return kept(self.density, spec.numel)
