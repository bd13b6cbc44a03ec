"""Kinds and forms of state: what a rank keeps for itself, and what is packed."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import thinwire
from tests.engine.models import mlp, train
from tests.ranks import run_ranks
from tests.some import some
from thinwire import Strategy
from thinwire.core import Leaf, RankContext, Rounds, Spec, State
from thinwire.how import gather, two_shot
from thinwire.what import cast, clip, feedback, sampled, topk, uniform
from thinwire.when import every

# -- a private leaf that is flat over its span
# ------------------------------------------------------------------------


@dataclass(frozen=True)
class _last(cast):
    """Remembers this rank's own last values."""

    def init(self, spec: Spec, ctx: RankContext) -> State:
        return State({"last": Leaf(torch.zeros(spec.numel, dtype=spec.work), "private", spec)})

    def rounds(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Rounds:
        state["last"].value = x.to(spec.work, copy=True)
        return (yield from super().rounds(x, spec, state, ctx))


def _attached(strategy: Strategy, **settings):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return model, optimizer, thinwire.attach(model, optimizer, strategy, **settings)


def _own(sync) -> list[Tensor]:
    return [
        leaf.value
        for bucket in sync.buckets
        for part in bucket.slices
        for _, leaf in part.state.walk()
        if leaf.kind == "private"
    ]


def _saved_own(rank: int) -> tuple[dict[str, Tensor], list[Tensor]]:
    model, optimizer, sync = _attached(Strategy(what=_last(), how=gather()))
    with sync:
        train(model, optimizer, rank, range(2))
        return sync.state_dict(), _own(sync)


def _loaded_own(rank: int, states: list[dict[str, Tensor]]) -> list[Tensor]:
    _, _, sync = _attached(Strategy(what=_last(), how=gather()))
    with sync:
        sync.load_state_dict({key: value for state in states for key, value in state.items()})
        return _own(sync)


@pytest.mark.parametrize(("before", "after"), [(2, 5), (3, 2)])
def test_a_private_flat_leaf_is_taken_from_rank_r_modulo_the_old_world(before, after):
    states, owns = zip(*run_ranks(before, _saved_own), strict=True)
    assert not torch.equal(owns[0][0], owns[1][0])
    for rank, got in enumerate(run_ranks(after, _loaded_own, list(states))):
        assert all(map(torch.equal, got, owns[rank % before]))


# -- small private leaves
# ---------------------------------------------------------------------------------------------

SMALL = {
    "window": Strategy(what=clip(feedback(topk(0.1)), times=1.0, window=3), how=gather()),
    "threshold": Strategy(what=feedback(sampled(0.1)), how=gather()),
    "flown": Strategy(every(2), feedback(topk(0.1), reset=6), gather()),
    "of each share": Strategy(
        what=clip(feedback(uniform(4)), times=1.0, window=3, per="span"), how=two_shot()
    ),
    "of the second side": Strategy(
        what=uniform(4), how=two_shot(back=feedback(uniform(4), reset=6))
    ),
}
LAYOUT = {"bucket_bytes": 2000, "slice_bytes": 1500, "lanes": 2}


def _kept_small(rank: int, strategy: Strategy) -> tuple[dict[str, Tensor], list[Tensor]]:
    model, optimizer, sync = _attached(strategy, **LAYOUT)
    with sync:
        train(model, optimizer, rank, range(5), strategy.when.period)
        return sync.state_dict(), _own(sync)


def _taken_up_small(
    rank: int, strategy: Strategy, states: list, layout: dict
) -> tuple[list[Tensor], list[str]]:
    """Into a syncer that has gone other steps before."""
    model, optimizer, sync = _attached(strategy, **layout)
    with sync:
        train(model, optimizer, rank, range(90, 92), strategy.when.period)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sync.load_state_dict({key: value for state in states for key, value in state.items()})
        return _own(sync), [str(warning.message) for warning in caught]


@pytest.mark.parametrize("name", some(SMALL, 3))
def test_small_private_state_is_restored_in_the_same_world_and_layout_and_begins_anew_in_others(
    name,
):
    strategy = SMALL[name]
    states, owns = zip(*run_ranks(2, _kept_small, strategy), strict=True)
    assert owns[0], "there is some"
    for rank, (got, said) in enumerate(
        run_ranks(2, _taken_up_small, strategy, list(states), LAYOUT)
    ):
        assert said == []
        assert all(map(torch.equal, got, owns[rank]))
    for world, layout in ((3, LAYOUT), (2, {**LAYOUT, "bucket_bytes": 20000})):
        for got, said in run_ranks(world, _taken_up_small, strategy, list(states), layout):
            assert len(said) == 1
            assert "start anew: fly/" in said[0]
            assert all(
                bool((value == (-1 if value.dtype == torch.int64 else 0)).all()) for value in got
            )


def test_ranks_and_spans_have_windows_of_their_own():
    _, owns = zip(*run_ranks(2, _kept_small, SMALL["of each share"]), strict=True)
    windows = [tuple(value.flatten().tolist()) for own in owns for value in own if value.any()]
    assert len(set(windows)) == len(windows) > 4


# -- residuals in 8 bits
# ----------------------------------------------------------------------------------------------

INT8 = Strategy(what=feedback(topk(0.1), store="int8"), how=gather())


def _residuals(sync) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The bytes that are kept, and the values by parameter and element."""
    leaves = [
        leaf
        for bucket in sync.buckets
        for part in bucket.slices
        for path, leaf in part.state.walk()
        if path.endswith("residual")
    ]
    flat: dict[str, Tensor] = {}
    for leaf in leaves:
        for extent in leaf.spec.extents():
            flat.setdefault(extent.part.name, torch.zeros(extent.part.numel))[
                extent.low : extent.high
            ] = leaf.flat[extent.at :][: extent.high - extent.low]
    return [leaf.value for leaf in leaves], flat


def _kept_in_int8(rank: int, state: list | None):
    model, optimizer, sync = _attached(INT8, **LAYOUT)
    with sync:
        if state is None:
            train(model, optimizer, rank, range(6))
        else:
            sync.load_state_dict({key: value for each in state for key, value in each.items()})
        return sync.state_dict(), *_residuals(sync)


def test_8_bits_are_taken_up_bit_for_bit():
    states, before, _ = zip(*run_ranks(2, _kept_in_int8, None), strict=True)
    _, after, _ = zip(*run_ranks(2, _kept_in_int8, list(states)), strict=True)
    for own, again in zip(before, after, strict=True):
        assert all(value.dtype == torch.uint8 and value.any() for value in own)
        assert all(map(torch.equal, own, again))


@pytest.mark.parametrize("world", [2, 4])
def test_another_world_keeps_the_sum_of_8_bits_to_within_their_precision(world):
    states, _, before = zip(*run_ranks(3, _kept_in_int8, None), strict=True)
    _, _, after = zip(*run_ranks(world, _kept_in_int8, list(states)), strict=True)
    off, most = 0.0, 0.0
    for name in before[0]:
        old, new = (
            torch.stack([flat[name].double() for flat in flats]).sum(0) for flats in (before, after)
        )
        off = max(off, float((new - old).abs().max()))
        most = max(most, float(torch.stack([flat[name] for flat in after]).abs().max()))
    assert 0 < off <= 1.01 * most / 254  # each element lies on one rank, rounded by half a step
