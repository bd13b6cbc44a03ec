"""Look up a saved state by path and parameter.

A value is a rank's own, or the sum or mean over all ranks that saved it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from thinwire.core import Spec
from thinwire.engine import dcp
from thinwire.engine.layout import plain_name
from thinwire.errors import CheckpointError

META = "all|meta"
"""The key of the facts, which are of no path."""
Run = tuple[int, int, Tensor]
"""Elements low to high of a parameter, and their values."""


class Saved:
    """A state that was saved by `world` ranks, by path and parameter."""

    def __init__(self, state: dict[str, Tensor], world: int) -> None:
        self.world = world
        self._runs: dict[tuple[str, str], dict[int | None, list[Run]]] = defaultdict(
            lambda: defaultdict(list)
        )
        self._whole: dict[tuple[int | None, str, str], Tensor] = {}
        self.ranks: set[int] = set()
        # A key is `scope|path|low:high|parameter`, or `scope|path|whole|parameter`.
        for key, value in state.items():
            if key == META:
                continue
            scope, path, span, part = key.split("|", 3)
            part = plain_name(part)  # earlier versions kept what torch.compile puts before it
            rank = int(scope.removeprefix("rank")) if scope.startswith("rank") else None
            if rank is not None:
                self.ranks.add(rank)
            if span == "whole":
                self._whole[rank, path, part] = value
            else:
                low, high = map(int, span.split(":"))
                self._runs[path, part][rank].append((low, high, value))

    def owner(self, rank: int) -> int:
        """Return whose state a rank takes up: its own, or that of rank r mod (old world).

        A rank that came to a quorum beyond the world has its own, too.
        """
        return rank if rank in self.ranks else rank % self.world

    def has(self, path: str, part: str | None, rank: int | None) -> bool:
        return (rank, path, str(part)) in self._whole

    def whole(self, path: str, part: str | None, rank: int | None = None) -> Tensor:
        if not self.has(path, part, rank):
            raise CheckpointError(f"the state has no {path!r} of {part!r}{self._whose(rank)}")
        return self._whole[rank, path, str(part)]

    def wholes(self, prefix: str, rank: int) -> Iterator[tuple[str, str, Tensor]]:
        """Yield (rest of the path, parameter, value) of a rank's whole tensors below a path."""
        for (owner, path, part), value in self._whole.items():
            if owner == rank and path.startswith(prefix):
                yield path.removeprefix(prefix), part, value

    def flat(self, path: str, spec: Spec, rank: int | None) -> Tensor:
        """Return the span's values from whatever runs cover it: (spec.numel,) spec.work."""
        out = torch.empty(spec.numel, dtype=spec.work)
        # Runs were cut by the layout that saved them, extents by this one: copy where they overlap,
        # and check that no element is left.
        for extent in spec.extents():
            filled = torch.zeros(extent.high - extent.low, dtype=torch.bool)
            for low, high, value in self._runs.get((path, extent.part.name), {}).get(rank, []):
                a, b = max(low, extent.low), min(high, extent.high)
                if a < b:
                    out[extent.at + a - extent.low : extent.at + b - extent.low] = value[
                        a - low : b - low
                    ].to(out)
                    filled[a - extent.low : b - extent.low] = True
            if not filled.all():
                raise CheckpointError(
                    f"the state lacks elements of {path!r} of "
                    f"{extent.part.name!r}{self._whose(rank)}"
                )
        return out

    def mean_weights(self, names: Sequence[str], shares: Sequence[float]) -> Tensor:
        """Return the mean over ranks of their own parameters of these names, as one flat tensor."""
        self._must_be_whole()
        return torch.cat(
            [
                _mean(
                    [self.whole("private/weights", name, rank) for rank in range(self.world)],
                    shares,
                ).flatten()
                for name in names
            ]
        )

    def mean(self, path: str, spec: Spec, shares: Sequence[float]) -> Tensor:
        """Return the mean over ranks of what each holds for itself."""
        self._must_be_whole()
        return _mean([self.flat(path, spec, rank) for rank in range(self.world)], shares)

    def total(self, path: str, spec: Spec) -> Tensor:
        """Return the sum over all ranks that saved it: (spec.numel,) float64.

        In float64, so that the parts that it is dealt into add up to it.
        """
        self._must_be_whole()
        out = torch.zeros(spec.numel, dtype=torch.float64)
        for extent in spec.extents():
            for runs in self._runs.get((path, extent.part.name), {}).values():
                for low, high, value in runs:
                    a, b = max(low, extent.low), min(high, extent.high)
                    if a < b:
                        out[extent.at + a - extent.low : extent.at + b - extent.low] += value[
                            a - low : b - low
                        ].to(out)
        return out

    def _must_be_whole(self) -> None:
        missing = sorted(set(range(self.world)) - self.ranks)
        if missing:
            raise CheckpointError(
                f"the state was saved by {self.world} ranks and lacks those of ranks {missing}; "
                "another world size needs all: "
                "use sync.load_checkpoint(folder), or merge every rank's state_dict"
            )

    def _whose(self, rank: int | None) -> str:
        return (
            ""
            if rank is None
            else f" of rank {rank}; it holds those of ranks {sorted(self.ranks)} of {self.world}"
        )


def _mean(of_ranks: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Return the weighted sum of ranks' values, added in float64, in their own type."""
    return (
        torch.stack([each.double() * weight for each, weight in zip(of_ranks, shares, strict=True)])
        .sum(0)
        .to(of_ranks[0])
    )


def read_folder(folder: str | Path, key: str) -> dict[str, Tensor]:
    """Read a syncer's whole state, of every rank, from a DCP folder that any world saved.

    Raises:
        CheckpointError: the folder holds no state of that key, or cannot be read.
    """
    state = dcp.read_tensors(folder, lambda name: name.startswith(f"{key}."))
    if not any(name.endswith(META) for name in state):
        keys = sorted({name.split(".")[0] for name in dcp.tensor_names(folder)})
        raise CheckpointError(
            f"{folder} holds no syncer called {key!r}; it was saved with the keys {', '.join(keys)}"
        )
    return {name.removeprefix(f"{key}."): tensor for name, tensor in state.items()}
