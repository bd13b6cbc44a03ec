"""DDP's buckets as a source: its second layout, ranks without data, parameters not reached."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import thinwire
from tests.ddp import Branches, train, wrapped
from tests.engine.models import batch, loss_of, weights_of
from tests.ranks import run_ranks
from thinwire import Strategy
from thinwire.how import two_shot
from thinwire.what import feedback, uniform

FOUR_BITS = Strategy(what=feedback(uniform(bits=4)), how=two_shot())


def _residuals(sync: thinwire.Syncer) -> dict[tuple[str, str, int], Tensor]:
    """Every residual by path, parameter and element."""
    held = {}
    for bucket in sync.buckets:
        for part in bucket.slices:
            for path, leaf in part.state.walk():
                if leaf.spec is None:
                    continue
                for extent in leaf.spec.extents():
                    size = extent.high - extent.low
                    values = leaf.flat[extent.at : extent.at + size]
                    for i, value in enumerate(values):
                        held[path, extent.part.name, extent.low + i] = value.clone()
    return held


def _relaid(rank: int) -> tuple[bool, bool, int, list[str]]:
    ddp, optimizer = wrapped()
    sync = thinwire.ddp_hook(ddp, FOUR_BITS, optimizer=optimizer)
    train(ddp, optimizer, rank, range(1))
    before, layout = _residuals(sync), [bucket.names for bucket in sync.buckets]
    ddp(batch(1, rank)[0])  # the second forward pass lays buckets out anew
    after = _residuals(sync)
    same = before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    nonzero = sum(bool(value) for value in before.values())
    rows = [row.name for row in sync.report().rows]
    return same, layout != [b.names for b in sync.buckets], nonzero, rows


def test_residuals_follow_parameter_and_element_into_the_second_layout() -> None:
    for same, moved, nonzero, rows in run_ranks(2, _relaid):
        assert moved, "DDP kept its first layout: this proves nothing"
        assert nonzero > 100
        assert same
        assert any("to step 1" in row for row in rows)


def _uneven(rank: int, strategy: Strategy) -> tuple[Tensor, Tensor]:
    results = []
    for ours in (False, True):
        ddp, optimizer = wrapped()
        if ours:
            thinwire.ddp_hook(ddp, strategy, optimizer=optimizer)
        with ddp.join():
            train(ddp, optimizer, rank, range(1 if rank == 0 else 5))
        results.append(weights_of(ddp))
    return results[0], results[1]


def test_ranks_run_out_of_data_at_different_steps() -> None:
    for theirs, ours in run_ranks(2, _uneven, Strategy()):
        assert torch.equal(theirs, ours)
    a, b = run_ranks(2, _uneven, FOUR_BITS)
    assert torch.equal(a[1], b[1])


def _unreached(rank: int, set_to_none: bool) -> tuple[bool, bool, bool]:
    ddp, optimizer = wrapped(Branches(), "find_unused")
    sync = thinwire.ddp_hook(ddp, FOUR_BITS, optimizer=optimizer)
    for step in range(3):  # the third pass reaches `odd`
        loss_of(ddp, step, rank).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)
    before = {key: value for key, value in _residuals(sync).items() if key[1] == "odd.weight"}
    loss_of(ddp, 3, rank).backward()  # the fourth does not
    after = _residuals(sync)
    kept = all(torch.equal(before[key], after[key]) for key in before)
    module: Any = ddp.module
    return (
        any(bool(value) for value in before.values()) and kept,
        module.odd.weight.grad is None or not bool(module.odd.weight.grad.any()),
        module.never.weight.grad is None,
    )


@pytest.mark.parametrize("set_to_none", [True, False])
def test_parameters_that_no_rank_reached_keep_their_residual_and_no_gradient(
    set_to_none: bool,
) -> None:
    assert run_ranks(2, _unreached, set_to_none) == [(True, True, True)] * 2
