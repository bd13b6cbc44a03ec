"""Save a syncer's state as named tensors, and take it up in the same or another world.

Keys are `scope|path|low:high|parameter`: the elements `low` to `high` of one parameter's part of a
state, so that a state survives another bucket layout and another world size. Scopes:

    all      equal on every rank: anchors, outer state, warm starts, sums not applied yet
    shard    each element saved by its one owner: second-side residuals
    rank3    rank 3's own: residuals, and on local steps its parameters and inner optimiser state

Of a sharded parameter (FSDP2) `low` and `high` count in the whole one, and what is no span's is
`whole@1/2` of the second of two shards: ranks that are replicas of one another save the same keys
as unsharded ranks, so a state goes from one layout to another.

A syncer among a part of the ranks puts `among 0-1/` before each key, since another part has keys of
the same names.

In another world size:
    1. a *summed* state of each rank is added up and dealt out: element i goes to rank i mod K, the
       rounding of that float32 to the next rank, so that the sum over ranks stays what it was (to
       the precision that the state is stored in). In the same world, each rank has its own again
    2. parameters that ranks average, and anchors and outer state of each rank's own, start at their
       weighted mean
    3. other *private* state is taken from rank r mod (old world)
    4. small tensors of a span (a threshold, a window of norms) start anew, in another layout too
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from thinwire.core import Leaf, Spec
from thinwire.engine.airborne import Airborne
from thinwire.engine.buckets import FlatBucket
from thinwire.engine.layout import plain_name
from thinwire.engine.packed_json import pack_json, unpack_json
from thinwire.engine.resumable import Resumable
from thinwire.engine.saved import META, Saved
from thinwire.engine.saved_facts import facts_of, must_fit
from thinwire.engine.shards import is_sharded, like, local_of, offset_of
from thinwire.errors import CheckpointError, NotLandedError


def save(sync: Resumable) -> dict[str, Tensor]:
    """Return the state; flights in the air are waited for and saved as sums, but not landed."""
    sync.flights.wait_all()
    sync.weights.commit()
    if sync.clock.accumulating:
        raise NotLandedError(
            f"a checkpoint in the middle of an accumulation of {sync.session.strategy.when!r} "
            "would lose this rank's sum in .grad: save after optimizer.step()"
        )

    if scattered := [name for name, p in sync.session.trained() if offset_of(p) is None]:
        raise CheckpointError(
            f"{scattered[0]!r} is sharded otherwise than by rows, and a state is saved by runs of "
            "elements: shard along the first dimension to save"
        )

    # 1. State of targets, routes and codecs, by parameter where it is a span's.
    state = {META: pack_json(facts_of(sync))}
    for path, leaf in _leaves(sync):
        scope = _scope(leaf, sync.session.driver.rank)
        if leaf.spec is None:
            state[f"{scope}|{path}|{_whole(sync, leaf)}|{leaf.part}"] = leaf.value.clone()
        else:
            state.update(
                runs(scope, path, leaf.spec, leaf.value if leaf.form is None else leaf.flat)
            )

    # 2. Sums that have not landed yet, then buffers, and weights that are each rank's own.
    for bucket in sync.session.buckets:
        for air in bucket.air:
            state.update(runs("all", f"air/{air.step}", bucket.spec, air.x))
    state.update(_buffers(sync))
    if sync.session.strategy.on.clock == "step":
        state.update(_private(sync))

    # 3. Among part of the ranks, keys begin with who they are, so that parts share one folder.
    begin = _rank_prefix(sync)
    return {f"{begin}{key}": value for key, value in state.items()}


def load(sync: Resumable, state: dict[str, Tensor]) -> None:
    """Take up a state; see `Syncer.load_state_dict`."""
    # 1. Refuse what does not fit this model and strategy, before anything changes.
    state = _of_group(sync, state)
    if META not in state:
        raise CheckpointError("this is no state of a syncer: it has no 'all|meta' entry")
    meta = unpack_json(state[META])
    must_fit(sync, meta)
    saved = Saved(state, meta["world"], sync.session.replica.name)
    rank, world = sync.session.driver.rank, sync.session.driver.world
    # Decided alike on all ranks: owners of elements may have moved.
    dealt = saved.world != world or meta["cut"] != facts_of(sync)["cut"]

    # 2. Buffers, this rank's own weights, and the state of targets, routes and codecs.
    sync.flights.wait_all()
    for bucket in sync.session.buckets:
        bucket.air.clear()
    _load_buffers(sync, saved, saved.owner(rank))
    if sync.session.strategy.on.clock == "step":
        _load_private(sync, saved, saved.owner(rank))
    _load_leaves(sync, saved, dealt, meta["shares"])

    # 3. Sums in the air. In another world nobody's own weights are left, so all take the mean.
    for bucket in sync.session.buckets:
        _load_air(bucket, saved, meta)
    if saved.world != world and sync.session.strategy.on.clock == "step":
        for bucket in sync.session.buckets:
            common = sync.session.strategy.on.common(bucket, bucket.state)
            bucket.set_weights(
                saved.mean("private/weights", bucket.spec, meta["shares"])
                if common is None
                else common
            )

    # 4. Weights of ranks, pace and clock.
    if saved.world == world:
        _take_shares(sync, meta)
    if sync.pace is not None:
        sync.pace.resume(meta.get("pace") if saved.world == world else None)
    sync.resume(meta["step"], meta["apart"])


def _rank_prefix(sync: Resumable) -> str:
    """Return what the keys begin with where the syncer has a part of the ranks, else ""."""
    ranks = sync.session.members
    return f"among {'-'.join(map(str, ranks))}/" if ranks else ""


def _of_group(sync: Resumable, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what belongs to this syncer's own part of the ranks, by plain keys."""
    begin = _rank_prefix(sync)
    parts = sorted({key.partition("/")[0] for key in state if key.startswith("among ")})
    if not parts:
        return state  # of all ranks, or saved before keys named the part
    if begin.removesuffix("/") not in parts:
        mine = begin.removesuffix("/") or "among all"
        raise CheckpointError(
            f"the state is of ranks {', '.join(parts)}, and this syncer is {mine}: attach among "
            "the ranks that saved it"
        )
    return {key.removeprefix(begin): value for key, value in state.items() if key.startswith(begin)}


# -- saving


def _leaves(sync: Resumable) -> Iterator[tuple[str, Leaf]]:
    for bucket in sync.session.buckets:
        yield from bucket.state.walk("on/")
        for part in bucket.slices:
            yield from part.state.walk("fly/")


def _whole(sync: Resumable, leaf: Leaf) -> str:
    """Return how a key names a tensor that is no span's: shards have their own, but for counts,
    which are the same in all."""
    name = sync.session.replica.name
    counts = (
        leaf.kind == "replicated" and not leaf.value.dim() and not leaf.value.is_floating_point()
    )
    return f"whole@{name}" if name and not counts else "whole"


def _scope(leaf: Leaf, rank: int) -> str:
    return {"replicated": "all", "sharded": "shard"}.get(leaf.kind, f"rank{rank}")


def runs(scope: str, path: str, spec: Spec, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
    for extent in spec.extents():
        size = extent.high - extent.low
        yield (
            f"{scope}|{path}|{extent.global_low}:{extent.global_high}|{extent.part.name}",
            flat[extent.at : extent.at + size].clone(),
        )


def _private(sync: Resumable) -> Iterator[tuple[str, Tensor]]:
    """Yield this rank's own parameters and inner optimiser state."""
    scope = f"rank{sync.session.driver.rank}|private"
    for name, param in sync.session.trained():
        yield _owned(f"{scope}/weights", name, param, param)
        for key, value in sync.session.optimizer.state.get(param, {}).items():
            if isinstance(value, Tensor):
                yield _owned(f"{scope}/optimizer/{key}", name, param, value)
            elif isinstance(value, int | float):
                yield f"{scope}/number/{key}|whole|{name}", torch.tensor(value, dtype=torch.float64)
            elif value is not None:
                raise CheckpointError(
                    f"the optimiser keeps {key!r} of {name!r} as a {type(value).__name__}, which "
                    "is no tensor or number to save"
                )


def _owned(path: str, name: str, param: Tensor, value: Tensor) -> tuple[str, Tensor]:
    """Return the key and values of what a rank has for a parameter: of a shard, by elements.

    Raises:
        CheckpointError: an optimiser keeps a shard's state in another shape.
    """
    local = local_of(value).clone()
    if not is_sharded(param) or not value.dim():
        return f"{path}|whole|{name}", local
    if value.shape != param.shape or not is_sharded(value):
        raise CheckpointError(
            f"{path.rpartition('/')[2]!r} of {name!r} has another shape than the parameter, which "
            "is sharded: it cannot be saved by elements"
        )
    low = offset_of(param) or 0
    return f"{path}|{low}:{low + local.numel()}|{name}", local.flatten()


def _buffers(sync: Resumable) -> Iterator[tuple[str, Tensor]]:
    """Yield this rank's buffers, where they are local."""
    if sync.session.options.buffers == "local":
        for name, buffer in sync.session.model.named_buffers():
            shard = sync.session.replica.name
            at = f"whole@{shard}" if shard else "whole"
            yield (
                f"rank{sync.session.driver.rank}|private/buffers|{at}|{plain_name(name)}",
                buffer.detach().clone(),
            )


# -- loading


def _dealt(saved: Saved, path: str, leaf: Leaf, rank: int, world: int) -> Tensor:
    """Return this rank's part of a sum that is divided among the ranks.

    Element i goes whole to the i-th rank, in turn, and what float32 rounds off to the next one.
    """
    assert leaf.spec is not None
    total = saved.total(path, leaf.spec)
    group = leaf.group or tuple(range(world))
    owner = torch.arange(leaf.spec.numel) % len(group)  # position in the group that gets element i
    dtype = leaf.value.dtype if leaf.form is None else leaf.spec.work
    main = total.to(dtype)
    rest = (total - main).to(dtype)
    mine = group.index(rank)
    out = torch.where(owner == mine, main, torch.zeros_like(main))
    if len(group) > 1:
        out += torch.where((owner + 1) % len(group) == mine, rest, torch.zeros_like(rest))
    return out


def _load_leaves(sync: Resumable, saved: Saved, dealt: bool, shares: Sequence[float]) -> None:
    """Load every leaf from what was saved of it, or dealt; a small private one begins again where
    there is nothing of this world and layout."""
    driver, anew = sync.session.driver, set()
    everyone = tuple(range(driver.world))
    for path, leaf in _leaves(sync):
        # In the same world each rank has its own again, whatever the layout; but where only some
        # ranks add an element up, another cut may give it to others.
        own = saved.world == driver.world and leaf.group in ((), everyone)
        owner = saved.owner(driver.rank) if leaf.kind in ("summed", "private") else None
        elsewhere = saved.world != driver.world or (
            dealt and path.startswith("fly/")
        )  # a slice's, not a bucket's, goes by the cut
        lacks = leaf.spec is None and not saved.has(path, leaf.part, owner)
        if leaf.first is not None and (elsewhere or lacks):
            leaf.value = leaf.first
            anew.add(path)
        elif lacks and saved.resharded:  # of another part of the matrix, so of no use here
            anew.add(path)
        elif leaf.spec is None:
            leaf.value = saved.whole(path, leaf.part, owner).to(leaf.value)
        elif leaf.kind == "summed" and dealt and not own:
            leaf.flat = _dealt(saved, path, leaf, driver.rank, driver.world)
        elif leaf.kind == "private" and path.startswith("on/") and saved.world != driver.world:
            leaf.flat = saved.mean(path, leaf.spec, shares)
        else:
            leaf.flat = saved.flat(path, leaf.spec, owner)
    if anew:
        warnings.warn(
            (
                "the state holds none of this world and layout, so these start anew: "
                f"{', '.join(sorted(anew))}"
            ),
            stacklevel=4,
        )


def _load_air(bucket: FlatBucket, saved: Saved, meta: dict[str, Any]) -> None:
    steps = meta["air"][bucket.index] if any(meta["air"]) else []
    silent = (
        meta["air_silent"][bucket.index] if steps and "air_silent" in meta else [[]] * len(steps)
    )
    totals = [saved.flat(f"air/{step}", bucket.spec, None) for step in steps]
    for step, x, names in zip(steps, bucket.restore(totals), silent, strict=True):
        gone = frozenset(i for i, name in enumerate(bucket.names) if name in names)
        bucket.air.append(Airborne(step, x, [], [], waited=True, silent=gone))


def _load_buffers(sync: Resumable, saved: Saved, rank: int) -> None:
    buffers = {plain_name(name): buffer for name, buffer in sync.session.model.named_buffers()}
    with torch.no_grad():
        for _, name, value in saved.wholes("private/buffers", rank):
            buffers[name].copy_(value)


def _take_shares(sync: Resumable, meta: dict[str, Any]) -> None:
    """Take the weights of ranks that `weigh` set last, or else those of this `attach`."""
    if meta.get("weighed", True):
        sync.weights.fractions, sync.weights.from_ranks = meta["shares"], True
    elif list(sync.weights.fractions) != meta["shares"]:
        warnings.warn(
            (
                f"the state was saved by ranks of shares {meta['shares']}, and goes on by "
                f"{list(sync.weights.fractions)}"
            ),
            stacklevel=5,
        )


def _load_private(sync: Resumable, saved: Saved, rank: int) -> None:
    params = dict(sync.session.trained())
    for bucket in sync.session.buckets:
        bucket.set_weights(saved.flat("private/weights", bucket.spec, rank))
    by_elements = saved.paths("private/optimizer/", rank)
    for kind in ("optimizer", "number"):
        for key, name, value in saved.wholes(f"private/{kind}/", rank):
            state = sync.session.optimizer.state[params[name]]
            if kind == "number":
                # Saved as float64; a count must be an integer again.
                old = state.get(key)
                state[key] = (
                    int(value)
                    if isinstance(old, int) or (old is None and float(value).is_integer())
                    else float(value)
                )
            elif not value.dim():
                state[key] = value.clone()
            elif not is_sharded(params[name]):
                state[key] = value.to(params[name].device, copy=True)
            else:
                by_elements.append((key, name))
    # What was saved by elements, or is to be a shard now.
    specs = {
        part.name: bucket.spec.span(part.begin, part.end)
        for bucket in sync.session.buckets
        for part in bucket.spec.parts
    }
    for key, name in by_elements:
        path, param = f"private/optimizer/{key}", params[name]
        flat = saved.flat(path, specs[name], rank).to(param.device, saved.dtype(path, name, rank))
        values = like(param, flat.view(local_of(param).shape))
        sync.session.optimizer.state[param][key] = values
