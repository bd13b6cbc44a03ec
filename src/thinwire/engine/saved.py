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
    """A state that was saved by `world` ranks, by path and parameter.

    Args:
        shard: which of a replica's shards takes it up, such as "1/2"; "" where it has all.
    """

    def __init__(self, state: dict[str, Tensor], world: int, shard: str = "") -> None:
        self.world, self._shard = world, shard
        self._runs: dict[tuple[str, str], dict[int | None, list[Run]]] = defaultdict(
            lambda: defaultdict(list)
        )
        self._whole: dict[tuple[int | None, str, str], dict[str, Tensor]] = defaultdict(dict)
        self.ranks: set[int] = set()
        # A key is `scope|path|low:high|parameter`, or `scope|path|whole|parameter`, or of shards
        # `scope|path|whole@1/2|parameter`.
        for key, value in state.items():
            if key == META:
                continue
            scope, path, span, part = key.split("|", 3)
            part = plain_name(part)  # earlier versions kept what torch.compile puts before it
            rank = int(scope.removeprefix("rank")) if scope.startswith("rank") else None
            if rank is not None:
                self.ranks.add(rank)
            if span.startswith("whole"):
                self._whole[rank, path, part][span.removeprefix("whole").removeprefix("@")] = value
            else:
                low, high = map(int, span.split(":"))
                self._runs[path, part][rank].append((low, high, value))

    def owner(self, rank: int) -> int:
        """Return whose state a rank takes up: its own, or that of rank r mod (old world).

        A rank that came to a quorum beyond the world has its own, too.
        """
        return rank if rank in self.ranks else rank % self.world

    @property
    def resharded(self) -> bool:
        """Return whether it was saved by ranks that held other shards than this one does."""
        shards = {shard for values in self._whole.values() for shard in values if shard}
        return self._shard not in shards if self._shard else bool(shards)

    def has(self, path: str, part: str | None, rank: int | None) -> bool:
        return self._held(path, part, rank) is not None

    def whole(self, path: str, part: str | None, rank: int | None = None) -> Tensor:
        value = self._held(path, part, rank)
        if value is None:
            raise CheckpointError(f"the state has no {path!r} of {part!r}{self._whose(rank)}")
        return value

    def _held(self, path: str, part: str | None, rank: int | None) -> Tensor | None:
        """Return a whole tensor of this shard, or a count, which is the same in all."""
        by_shard = self._whole.get((rank, path, str(part)), {})
        plain = by_shard.get("")
        counts = plain is not None and not plain.dim() and not plain.is_floating_point()
        return by_shard.get(self._shard, plain if counts else None)

    def wholes(self, prefix: str, rank: int) -> Iterator[tuple[str, str, Tensor]]:
        """Yield (rest of the path, parameter, value) of a rank's whole tensors below a path: of
        this shard, or else of the first."""
        for (owner, path, part), by_shard in self._whole.items():
            if owner == rank and path.startswith(prefix):
                value = by_shard.get(self._shard, next(iter(by_shard.values())))
                yield path.removeprefix(prefix), part, value

    def paths(self, prefix: str, rank: int) -> list[tuple[str, str]]:
        """List (rest of the path, parameter) of what a rank saved by elements below a path."""
        return [
            (path.removeprefix(prefix), part)
            for (path, part), by_rank in self._runs.items()
            if rank in by_rank and path.startswith(prefix)
        ]

    def _runs_of(self, path: str, part: str, rank: int | None) -> list[Run]:
        """List the runs of a parameter's elements that a rank saved; a whole tensor is one."""
        runs = self._runs.get((path, part), {}).get(rank, [])
        whole = self._whole.get((rank, path, part), {}).get("")
        if whole is not None and whole.dim():
            runs = [*runs, (0, whole.numel(), whole.flatten())]
        return runs

    def dtype(self, path: str, part: str, rank: int) -> torch.dtype:
        """Return the type in which a rank saved a parameter's elements."""
        return self._runs_of(path, part, rank)[0][2].dtype

    def flat(self, path: str, spec: Spec, rank: int | None) -> Tensor:
        """Return the span's values from whatever runs cover it: (spec.numel,) spec.work."""
        out = torch.empty(spec.numel, dtype=spec.work)
        # Runs were cut by the layout that saved them, extents by this one: copy where they overlap,
        # and check that no element is left.
        for extent in spec.extents():
            first, end = extent.global_low, extent.global_high
            filled = torch.zeros(end - first, dtype=torch.bool)
            for low, high, value in self._runs_of(path, extent.part.name, rank):
                a, b = max(low, first), min(high, end)
                if a < b:
                    out[extent.at + a - first : extent.at + b - first] = value[
                        a - low : b - low
                    ].to(out)
                    filled[a - first : b - first] = True
            if not filled.all():
                raise CheckpointError(
                    f"the state lacks elements of {path!r} of "
                    f"{extent.part.name!r}{self._whose(rank)}"
                )
        return out

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
            first, end = extent.global_low, extent.global_high
            for runs in self._runs.get((path, extent.part.name), {}).values():
                for low, high, value in runs:
                    a, b = max(low, first), min(high, end)
                    if a < b:
                        out[extent.at + a - first : extent.at + b - first] += value[
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
