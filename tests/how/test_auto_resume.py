"""A checkpoint that was saved where `auto()` took one route goes on where it takes another."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import Tensor

import thinwire
from tests.engine.models import mlp, train
from tests.wires import wires
from thinwire import Strategy
from thinwire.core import Codec, Link
from thinwire.drive.sim import SimFabric
from thinwire.errors import CheckpointError
from thinwire.how import auto, direct, hierarchical, ring, two_shot
from thinwire.on import gradients
from thinwire.what import by_role, feedback, identity, lowrank, topk, uniform
from thinwire.when import every

WORLD = 4
NEAR, FAR = (
    Link(1e-6, 1e5),
    Link(1.0, 1e9),
)  # where bytes count, and where messages one after another do


def run(
    strategy: Strategy, link: Link, saved: dict[str, Tensor] | None, steps: range
) -> tuple[list[str], dict[str, Tensor], list[Tensor]]:
    """Train over such a link from a state on; what was chosen, all ranks' state, and their
    residuals at the start."""
    fabric = SimFabric(WORLD, *wires(link), timeout=timedelta(seconds=30))

    def rank(number: int) -> tuple[list[str], dict[str, Tensor], list[Tensor]]:
        torch.set_num_threads(1)
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        with thinwire.attach(
            model, optimizer, strategy, bucket_bytes=1 << 20, driver=fabric.driver(number)
        ) as sync:
            if saved is not None:
                sync.load_state_dict(saved)
            held = residuals(sync)
            train(model, optimizer, number, steps)
            return [row.route for row in sync.report().rows], sync.state_dict(), held

    with ThreadPoolExecutor(WORLD) as pool:
        told = list(pool.map(rank, range(WORLD)))
    merged: dict[str, Tensor] = {}
    for _, state, _ in told:
        merged |= state
    return told[0][0], merged, [each for _, _, held in told for each in held]


def residuals(sync: Any) -> list[Tensor]:
    """This rank's residual of each parameter's elements, in their order."""
    found = []
    for bucket in sync.buckets:
        for part in bucket.slices:
            leaves = [
                (leaf.spec.begin, leaf.flat)
                for _, leaf in part.state.walk()
                if leaf.kind == "summed" and leaf.spec is not None
            ]
            found += [flat for _, flat in sorted(leaves, key=lambda each: each[0])]
    return [torch.cat(found)] if found else []


@pytest.mark.parametrize(
    "codec",
    [
        feedback(uniform(4, block=8)),
        feedback(topk(0.2)),
        by_role(matrix=feedback(lowrank(2)), vector=identity()),
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    "there_and_back",
    [(NEAR, FAR), pytest.param((FAR, NEAR), marks=pytest.mark.long)],
    ids=["near to far", "far to near"],
)
def test_residuals_go_over_to_the_other_route(
    codec: Codec, there_and_back: tuple[Link, Link]
) -> None:
    first, second = there_and_back
    strategy = Strategy(every(1), codec, auto(), gradients())
    before, saved, _ = run(strategy, first, None, range(3))
    _, _, held = run(strategy, first, saved, range(3, 3))
    after, later, taken = run(strategy, second, saved, range(3, 5))
    assert before != after or codec.traits.drops, (
        "the links must make for different choices, where there are any"
    )
    assert all(torch.equal(one, other) for one, other in zip(held, taken, strict=True))
    assert any(float(each.abs().max()) > 0 for each in held)
    assert run(strategy, first, later, range(5, 6))[1]


def test_from_a_flat_route_to_levels_is_refused() -> None:
    """Between nodes each rank has a residual of its share only."""
    levels = hierarchical((direct(), identity()), two_shot(), 2)
    strategy = Strategy(
        every(1),
        feedback(uniform(4, block=8)),
        auto(losses=9, routes=(levels, ring())),
        gradients(),
    )
    first, saved, _ = run(strategy, NEAR, None, range(2))
    assert first == ["ring()"]
    with pytest.raises(
        CheckpointError,
        match=r"the state lacks elements of 'fly/outer/codec/\w+' of '\d\.\w+' of rank \d",
    ):
        run(strategy, FAR, saved, range(2, 3))
