"""Move the state of one strategy into the buckets of another.

State moves as in a checkpoint, by path, parameter and element, never by bucket: another strategy
may lay out other buckets and cut them at another grain. Where a leaf of the new state finds nothing
of its path, it starts as at attach. What finds no place in the new state is listed.

State is taken over only where the target stays of one kind: what is left over of a gradient is no
part of a difference of weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from thinwire.core import Kind, Leaf
from thinwire.engine.airborne import Airborne
from thinwire.engine.buckets import FlatBucket
from thinwire.engine.checkpoint import runs
from thinwire.engine.session import Session
from thinwire.strategy import Strategy
from thinwire.strategy.fingerprint import fingerprint


class _Run:
    """A run of elements of one parameter's old state, which notes those that have been taken."""

    def __init__(self, low: int, high: int, values: Tensor) -> None:
        self.low, self.high, self.values = low, high, values
        self.taken = torch.zeros(high - low, dtype=torch.bool, device=values.device)

    @property
    def lost(self) -> bool:
        """Return whether some element that is not zero found no place in the new state."""
        return bool((self.values.ne(0) & ~self.taken).any())


class _Old:
    """A view of the old strategy's state on this rank, by kind, path and parameter."""

    def __init__(self, buckets: Sequence[FlatBucket]) -> None:
        self.runs: dict[tuple[str, str, str], list[_Run]] = {}
        self.wholes: dict[tuple[str, str, str], Tensor] = {}
        for path, leaf in _leaves(buckets):
            if leaf.spec is None:
                self.wholes[leaf.kind, path, str(leaf.part)] = leaf.value
                continue
            for saved_key, values in runs(leaf.kind, path, leaf.spec, leaf.flat):
                low, high, name = _read(saved_key)
                self.runs.setdefault((leaf.kind, path, name), []).append(_Run(low, high, values))

    def path_of(self, kind: Kind, path: str) -> str:
        """Return the old path of a new leaf: its own, or of a residual the only one of its kind."""
        paths = {old for of_kind, old, _ in self.runs if of_kind == kind}
        alike = [old for old in paths if old.rpartition("/")[2] == _RESIDUAL]
        is_residual = path.rpartition("/")[2] == _RESIDUAL
        return alike[0] if path not in paths and is_residual and len(alike) == 1 else path

    def fill(self, path: str, leaf: Leaf) -> tuple[Tensor, bool]:
        """Return a new flat leaf's values with those of the old state, and whether all are."""
        assert leaf.spec is not None
        parts, full, old = [], True, self.path_of(leaf.kind, path)
        # `values` begin as copies of the new leaf's own; old values are written over them.
        for saved_key, values in runs(leaf.kind, old, leaf.spec, leaf.flat):
            low, high, name = _read(saved_key)
            filled = 0
            for run in self.runs.get((leaf.kind, old, name), []):
                a, b = max(run.low, low), min(run.high, high)
                if a < b:
                    values[a - low : b - low] = run.values[a - run.low : b - run.low].to(values)
                    run.taken[a - run.low : b - run.low] = True
                    filled += b - a
            # With one element that has no old value the leaf does not count as carried over.
            full = full and filled >= high - low
            parts.append(values)
        return torch.cat(parts) if parts else leaf.flat, full


def _read(saved_key: str) -> tuple[int, int, str]:
    """Return low, high and the parameter of a key `kind|path|low:high|parameter`."""
    _, _, span, name = saved_key.split("|", 3)
    low, high = map(int, span.split(":"))
    return low, high, name


_RESIDUAL = "residual"


def _leaves(buckets: Sequence[FlatBucket]) -> Iterator[tuple[str, Leaf]]:
    for bucket in buckets:
        yield from bucket.state.walk("on/")
        for part in bucket.slices:
            yield from part.state.walk("fly/")


def move_state(
    session: Session, strategy: Strategy, built: Sequence[FlatBucket]
) -> tuple[list[str], bool]:
    """Put the old state into the leaves of new buckets, where they hold it.

    Returns:
        What is lost, in sentences; and whether state that ranks hold alike begins anew.
    """
    # 1. What may be carried: values of one kind; whole tensors only to the same component.
    old, before = _Old(session.buckets), session.strategy
    one_kind = type(before.on) is type(strategy.on) and before.on.mean == strategy.on.mean
    same = {
        "on": fingerprint(before.on) == fingerprint(strategy.on),
        "fly": [fingerprint(x) for x in (before.what, before.how)]
        == [fingerprint(x) for x in (strategy.what, strategy.how)],
    }

    # 2. Fill each new leaf, element for element, and note what it could not hold.
    rounded: set[str] = set()
    fresh_base = False
    for path, leaf in _leaves(built):
        carried = False
        if leaf.spec is not None and one_kind:
            flat, carried = old.fill(path, leaf)
            leaf.flat = flat
            if not torch.equal(leaf.flat, flat):
                rounded.add(path)
        elif one_kind and same[path.partition("/")[0]]:
            # what belongs to a whole tensor, or to a span, has a meaning to its own codec alone
            value = old.wholes.pop((leaf.kind, path, str(leaf.part)), None)
            carried = value is not None and value.dtype == leaf.value.dtype
            leaf.value = value if value is not None and carried else leaf.value
        fresh_base |= leaf.kind == "replicated" and path.startswith("on/") and not carried
    why = "" if one_kind else f", as {before.on!r} and {strategy.on!r} send other values"
    return _lost(old, strategy, why, rounded), fresh_base


def _lost(old: _Old, strategy: Strategy, why: str, rounded: set[str]) -> list[str]:
    """List what of the old state has found no place."""
    # 1. Values that no new leaf took, and whole tensors that are still there; a base is put anew
    #    before each launch, so it cannot be lost.
    names: dict[str, dict[str, None]] = {}
    for (_, path, name), held_runs in old.runs.items():
        if path.rpartition("/")[2] != "base" and any(run.lost for run in held_runs):
            names.setdefault(path, {})[name] = None
    for _, path, name in old.wholes:
        names.setdefault(path, {})[name] = None
    # 2. As sentences: dropped, or rounded to another form.
    lost = [
        f"{path!r} of {len(held)} parameters or spans dropped (from {next(iter(held))!r})"
        + (why or f": {strategy!r} does not hold it, or not here")
        for path, held in sorted(names.items())
    ]
    form = f"rounded: {strategy!r} keeps it in another form"
    return [*lost, *(f"{path!r} {form}" for path in sorted(rounded))]


def move_landed(before: Sequence[FlatBucket], built: Sequence[FlatBucket]) -> None:
    """Take over which `.grad` is a mean that has landed, so that it counts for no gradient, and
    means that were set aside."""
    marks = {
        id(param): (given, held)
        for bucket in before
        for param, given, held in zip(bucket.params, bucket.given, bucket.held, strict=True)
    }
    for bucket in built:
        bucket.given = [marks[id(param)][0] for param in bucket.params]
        bucket.held = [marks[id(param)][1] for param in bucket.params]


def move_air(before: Sequence[FlatBucket], built: Sequence[FlatBucket]) -> None:
    """Take over sums that have not landed yet; their flights have been waited for.

    All buckets of gradients launch together, so each of the new ones gets every launch.
    """
    steps = sorted({air.step for bucket in before for air in bucket.air})
    values: dict[tuple[int, str], Tensor] = {}
    silent: set[tuple[int, str]] = set()
    for bucket in before:
        for air in bucket.air:
            for i, part in enumerate(bucket.spec.parts):
                values[air.step, part.name] = air.x[part.begin : part.end]
                if i in air.silent:
                    silent.add((air.step, part.name))
    for bucket in built:
        totals = [torch.cat([values[step, name] for name in bucket.names]) for step in steps]
        for step, x in zip(steps, bucket.restore(totals), strict=True):
            gone = frozenset(i for i, name in enumerate(bucket.names) if (step, name) in silent)
            bucket.air.append(Airborne(step, x, [], [], waited=True, silent=gone))
