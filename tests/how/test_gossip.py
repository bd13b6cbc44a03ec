from itertools import pairwise
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.how.flights import bucket, contexts_of, partners, values
from tests.threads import on_threads
from thinwire.core import Codec, Driver, Route, State
from thinwire.drive.local import run
from thinwire.engine import attach
from thinwire.errors import StrategyError
from thinwire.how import auto, gossip, hierarchical, native
from thinwire.how.gossip import Topology
from thinwire.on import deltas, gradients, parameters
from thinwire.strategy import Strategy
from thinwire.testing import check_route
from thinwire.what import ef21, entropy, feedback, identity, lowrank, randomk, topk, uniform
from thinwire.when import every

TOPOLOGIES = get_args(Topology)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_laws(topology: Topology) -> None:
    check_route(gossip(topology), identity())


@pytest.mark.parametrize(
    "codec", [entropy(identity()), randomk(0.1), feedback(topk(0.1)), uniform(8)], ids=repr
)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_laws_with_other_codecs(topology: Topology, codec: Codec) -> None:
    check_route(gossip(topology), codec, worlds=(2, 5))


def average(
    route: Route, xs: dict[int, Tensor], states: dict[int, State], step: int
) -> dict[int, Tensor]:
    """One landing on parameters(): each rank says its share, and takes what it hears."""
    spec, at = bucket(64), contexts_of(len(xs), step)
    outcomes = run(
        {
            rank: route.carry(identity(), x / len(xs), spec, states[rank], at[rank])
            for rank, x in xs.items()
        }
    )
    return {rank: outcome.total for rank, outcome in outcomes.items()}


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("world", [2, 5, 8])
def test_parameters_draw_together_and_their_mean_stays(topology: Topology, world: int) -> None:
    route, xs = gossip(topology), values(world, bucket(64))
    states = {
        rank: route.init(identity(), bucket(64), ctx) for rank, ctx in contexts_of(world).items()
    }
    mean, spread = torch.stack(list(xs.values())).mean(0), [1.0]
    apart = float((torch.stack(list(xs.values())) - mean).norm())
    for step in range(40):
        xs = average(route, xs, states, 50 * step)  # as every(50) counts steps
        spread.append(float((torch.stack(list(xs.values())) - mean).norm()) / apart)
    assert torch.allclose(torch.stack(list(xs.values())).mean(0), mean, atol=1e-5)
    assert spread[-1] < 2e-2
    assert all(after <= before + 1e-6 for before, after in pairwise(spread))


@pytest.mark.parametrize("world", [2, 4, 8, 16])
def test_one_peer_exponential_is_exact_after_log2_flights(world: int) -> None:
    route, xs = gossip("exponential"), values(world, bucket(64))
    states = {
        rank: route.init(identity(), bucket(64), ctx) for rank, ctx in contexts_of(world).items()
    }
    mean = torch.stack(list(xs.values())).mean(0)
    flights = world.bit_length() - 1
    for step in range(flights):
        assert not torch.allclose(xs[0], mean, atol=1e-3)
        xs = average(
            route, xs, states, 100 * step
        )  # whatever the schedule's period: it counts flights
    assert all(torch.allclose(x, mean, atol=1e-5) for x in xs.values())


@given(st.integers(2, 40), st.integers(0, 10**6))
def test_pairs_are_agreed_on_by_seed_and_step(world: int, step: int) -> None:
    told = {rank: gossip().peers(ctx) for rank, ctx in contexts_of(world, step).items()}
    alone = [rank for rank, (to, _) in told.items() if not to]
    assert len(alone) == world % 2
    for rank, (to, hear) in told.items():
        assert to == hear
        assert all(told[peer][0] == [rank] and peer != rank for peer in to)


def test_pairs_change_from_step_to_step() -> None:
    drawn = {gossip().peers(contexts_of(16, step)[0])[0][0] for step in range(60)}
    assert len(drawn) > 10


def test_neighbours_of_a_ring() -> None:
    assert partners(gossip("ring"), identity(), 5) == {
        rank: {(rank + 1) % 5, (rank - 1) % 5} for rank in range(5)
    }


@pytest.mark.parametrize("on", [gradients(), deltas()], ids=repr)
def test_only_parameters_may_be_gossiped(on: object) -> None:
    with pytest.raises(
        StrategyError,
        match=r"Cannot use gossip.*nothing would bring the ranks' parameters.*Use parameters\(\)",
    ):
        Strategy(when=every(4), how=gossip(), on=on)  # type: ignore[arg-type]
    assert Strategy(when=every(4), how=gossip(), on=parameters()).how == gossip()


@pytest.mark.parametrize("codec", [feedback(lowrank(2)), ef21(topk(0.1))], ids=repr)
def test_state_that_ranks_must_share_is_refused(codec: Codec) -> None:
    assert "state that every rank must hold equal" in (gossip().refuses(codec) or "")


def test_another_topology_is_refused() -> None:
    with pytest.raises(StrategyError, match="choose 'pairs', 'ring', 'exponential'"):
        gossip("star")  # type: ignore[arg-type]


def test_it_is_no_part_of_routes_with_consensus() -> None:
    with pytest.raises(StrategyError, match="ask for it by itself"):
        auto(routes=(gossip(), native()))
    with pytest.raises(StrategyError, match="leaves ranks with different sums"):
        hierarchical(native(), gossip(), node=2)


def test_an_engine_gossips_parameters() -> None:
    """Ranks that a step has led apart draw together, and their mean stays, through attach and the
    optimiser's steps."""

    def rank(driver: Driver) -> list[Tensor]:
        model = nn.Linear(6, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with attach(
            model,
            optimizer,
            Strategy(every(2), how=gossip("exponential"), on=parameters()),
            driver=driver,
        ) as sync:
            seen = []
            for step in range(4):
                model(torch.ones(1, 6)).sum().backward()
                optimizer.step()
                for param in model.parameters() if step == 0 else ():
                    param.data.fill_(float(driver.rank))
                seen.append(model.weight.detach().clone())
            assert sync.report().sent_bytes == 2 * 4 * 21
        return seen

    told = on_threads(4, rank)
    steps = [[float(told[number][step].mean()) for number in range(4)] for step in range(4)]
    assert steps == [
        [0.0, 1.0, 2.0, 3.0],
        [1.5, 0.5, 1.5, 2.5],
        [1.5, 0.5, 1.5, 2.5],
        [1.5, 1.5, 1.5, 1.5],
    ]
