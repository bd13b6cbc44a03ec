"""Whatever the order and the delay in which messages arrive: nobody waits for ever, and every rank
ends with the same bits."""

import random
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.how.flights import contexts_of, values
from tests.some import some
from thinwire.core import Codec, Flight, Outcome, Part, RankContext, Route, Spec
from thinwire.drive.local import run
from thinwire.drive.sim import Launch, Report, simulate
from thinwire.how import (
    checked,
    direct,
    gather,
    gossip,
    halving_doubling,
    hierarchical,
    native,
    ring,
    server,
    torus,
    tree,
    two_shot,
)
from thinwire.net import Host, Network, Pair, Transport, Wire
from thinwire.what import entropy, feedback, identity, lowrank, topk, uniform

WORLD, STEPS, BUCKETS = 4, 2, (600, 64, 257)
PAIRS: list[tuple[Route, Codec]] = [
    (native(), identity()),
    (native(), feedback(lowrank(1))),
    (gather(), feedback(topk(0.1))),
    (direct(), identity()),
    (direct(slot_bytes=0), identity()),
    (two_shot(back=feedback(uniform(8, block=8))), feedback(uniform(4, block=8))),
    (two_shot(), entropy(uniform(4, block=8))),
    (checked(ring()), uniform(8, block=8)),
    (tree(2), identity()),
    (halving_doubling(), uniform(8, block=8)),
    (torus(2, 2), identity()),
    (server((0, 2, 3)), uniform(4, block=8)),
    (gossip("ring"), uniform(8, block=8)),
    (hierarchical(native(), two_shot(), 2), feedback(uniform(4, block=8))),
]


def slices(codec: Codec) -> list[tuple[int, Spec]]:
    """(lane, span) of every slice of every bucket: each keeps its lane."""
    cut: list[Spec] = []
    for n in BUCKETS:
        parts = (
            Part("a", (n // 8, 4), 0, "matrix"),
            Part("b", (n - n // 8 * 4,), n // 8 * 4, "vector"),
        )
        cut += Spec(parts, 0, n, torch.float32).cut(2, codec.traits.grain)
    return [(i % 2, span) for i, span in enumerate(cut)]


class Ranks:
    """The flights of all ranks, slice by slice and step by step, with the state that each rank
    keeps between them."""

    def __init__(self, route: Route, codec: Codec) -> None:
        self.route, self.codec, self.slices = route, codec, slices(codec)
        self.states = [
            {rank: route.init(codec, span, ctx) for rank, ctx in contexts_of(WORLD).items()}
            for _, span in slices(codec)
        ]

    def flights(self, number: int, step: int) -> dict[int, Flight[Outcome]]:
        _, span = self.slices[number]
        xs = values(WORLD, span, seed=step)
        contexts: dict[int, RankContext] = contexts_of(WORLD, step)
        return {
            r: self.route.carry(self.codec, xs[r], span, self.states[number][r], ctx)
            for r, ctx in contexts.items()
        }


def in_order(route: Route, codec: Codec) -> list[dict[int, torch.Tensor]]:
    """Each flight by itself, by the driver that knows no time."""
    ranks = Ranks(route, codec)
    done = [
        run(ranks.flights(number, step))
        for step in range(STEPS)
        for number in range(len(slices(codec)))
    ]
    return [{rank: outcome.total for rank, outcome in each.items()} for each in done]


def permuted(
    route: Route, codec: Codec, chance: random.Random
) -> tuple[list[dict[int, torch.Tensor]], Report]:
    """All of them side by side on two lanes, where each rank has rates of its own and each pair a
    latency, and each rank starts and thinks as it likes."""
    ranks = Ranks(route, codec)
    lanes: list[list[Launch]] = [[], []]
    places = []
    for step in range(STEPS):
        for number, (lane, _) in enumerate(slices(codec)):
            at = {rank: chance.choice((0.0, chance.random())) for rank in range(WORLD)}
            places.append((lane, len(lanes[lane])))
            lanes[lane].append(Launch(ranks.flights(number, step), at))
    hosts = tuple(
        Host(f"host{rank}", 8 * 10 ** chance.uniform(2, 6), 8 * 10 ** chance.uniform(2, 6))
        for rank in range(WORLD)
    )
    pairs = tuple(
        Pair((one.name, other.name), Wire(chance.choice((0.0, 0.001, 1.0)) * chance.random()))
        for one, other in combinations(hosts, 2)
    )
    told = simulate(
        lanes,
        Network(hosts, pairs=pairs),
        Transport(waits=chance.random() < 0.5),
        think=lambda _rank, _hop: chance.choice((0.0, 0.01, 0.5)) * chance.random(),
    )
    return [
        {rank: outcome.total for rank, outcome in told.outcomes[lane][at].items()}
        for lane, at in places
    ], told


@pytest.mark.parametrize(("route", "codec"), some(PAIRS, 8), ids=repr)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_arrivals_in_any_order_give_the_same_bits(route: Route, codec: Codec, seed: int) -> None:
    first, again = in_order(route, codec), permuted(route, codec, random.Random(seed))[0]
    for one, other in zip(first, again, strict=True):
        for rank in range(WORLD):
            assert torch.equal(one[rank], other[rank])


@pytest.mark.parametrize(("route", "codec"), [PAIRS[3], PAIRS[8]], ids=repr)
def test_arrivals_are_permuted_in_fact(route: Route, codec: Codec) -> None:
    """So that the test above can fail: sends end in another order from seed to seed, and lanes
    overtake one another."""

    def order(seed: int) -> list[tuple[int, int, int, int | None]]:
        told = permuted(route, codec, random.Random(seed))[1]
        return [
            (event.lane, event.flight, event.rank, event.peer)
            for event in told.events
            if event.kind == "send"
        ]

    orders = [order(seed) for seed in range(4)]
    assert len({tuple(each) for each in orders}) == 4
    assert all(sorted(each, key=str) == sorted(orders[0], key=str) for each in orders)
    assert any(
        [flight for lane, flight, *_ in each if lane]
        != sorted(flight for lane, flight, *_ in each if lane)
        for each in orders
    )


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(WORLD)), pair=st.sampled_from(PAIRS))
def test_ranks_that_are_run_in_any_order_give_the_same_bits(
    order: list[int], pair: tuple[Route, Codec]
) -> None:
    one, other = (run(Ranks(*pair).flights(0, 0), order=ranks) for ranks in (None, order))
    assert all(torch.equal(one[rank].total, other[rank].total) for rank in range(WORLD))
