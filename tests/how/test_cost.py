"""Closed form = simulator = local meter, for bytes and messages exactly; seconds exactly, or as
nearly as a route says."""

import itertools
from dataclasses import replace

import pytest
import torch

from tests.how.flights import EVEN, bucket, contexts_of, launch, values
from tests.some import some
from tests.wires import wires
from thinwire.core import Codec, Cost, Link, Route
from thinwire.drive.local import run
from thinwire.drive.sim import simulate
from thinwire.errors import StrategyError
from thinwire.how import (
    auto,
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
from thinwire.net import Wire, two_level
from thinwire.what import identity, topk, uniform

LINK = Link(0.003, 1e6, 0.0005)
WORLDS = range(1, 10)
EXACT = (
    native(),
    gather(),
    direct(),
    two_shot(),
    ring(),
    server(),
    torus(1, 5),
    torus(2, 2),
    torus(2, 4),
    torus(3, 3),
    auto(),
    gossip(),
)
SLOTTED = (direct(slot_bytes=0), two_shot(slot_bytes=1000))
ROUTES = (
    *EXACT,
    *SLOTTED,
    *(
        gossip("ring"),
        gossip("exponential"),
        two_shot(back=uniform(8)),
        server((1, 2)),
        tree(1),
        tree(6),
        halving_doubling(),
    ),
    *(
        hierarchical(native(), two_shot(), 2),
        hierarchical(native(), hierarchical((ring(), identity()), tree(2), 2), 2),
    ),
)


def serves(route: Route, world: int) -> bool:
    try:
        route.groups(world)
    except StrategyError:
        return False
    return True


SERVED = [
    (route, world) for route, world in itertools.product(ROUTES, WORLDS) if serves(route, world)
]


@pytest.mark.parametrize("numel", [EVEN, 37, 3, 0])
@pytest.mark.parametrize(("route", "world"), some(SERVED, len(SERVED) // 2), ids=repr)
def test_bytes_and_messages_are_the_closed_form_the_simulators_and_the_meters(
    route: Route, world: int, numel: int
) -> None:
    spec = bucket(numel)
    for codec in (identity(), uniform(8, block=8)):
        if route.refuses(codec):
            continue
        xs, sent = values(world, spec), {}
        told = simulate(launch(route, codec, xs, spec), *wires(LINK))
        totals = run(launch(route, codec, xs, spec), sent)
        for rank, ctx in contexts_of(world).items():
            cost = route.cost(codec, spec, ctx, LINK)
            assert cost.sent_bytes == pytest.approx(sent[rank], rel=1e-9)
            assert cost.sent_bytes == pytest.approx(told.sent_bytes[rank], rel=1e-9)
            assert cost.messages == told.messages[rank]
            assert torch.equal(told.outcome[rank].total, totals[rank].total)


@pytest.mark.parametrize(
    "link", [LINK, replace(LINK, waits=True)], ids=["sends at once", "waits for word"]
)
@pytest.mark.parametrize(
    ("route", "world"),
    [(route, world) for route, world in SERVED if route in EXACT + SLOTTED],
    ids=repr,
)
def test_seconds_are_the_simulators(route: Route, world: int, link: Link) -> None:
    assert seconds(route, identity(), world, link) == pytest.approx(
        formula(route, identity(), world, link), rel=1e-6
    )


@pytest.mark.parametrize("world", [2, 4, 8])
def test_seconds_of_halving_and_levels_are_exact_where_halves_are_halves(world: int) -> None:
    for route in (halving_doubling(), hierarchical(native(), two_shot(), 2)):
        assert seconds(route, identity(), world) == pytest.approx(
            formula(route, identity(), world), rel=1e-6
        )


@pytest.mark.parametrize("world", [3, 5, 6, 7, 9, 11, 12])
def test_seconds_of_halving_are_at_the_most_where_ranks_fold(world: int) -> None:
    assert (
        0.9
        < seconds(halving_doubling(), identity(), world)
        / formula(halving_doubling(), identity(), world)
        < 1 + 1e-6
    )


@pytest.mark.parametrize("segments", [1, 4, 12])
def test_seconds_of_a_tree_are_near_its_formula(segments: int) -> None:
    for world in range(2, 17):
        assert (
            0.5
            < seconds(tree(segments), identity(), world)
            / formula(tree(segments), identity(), world)
            < 1.4
        )


@pytest.mark.parametrize(("servers", "world"), [(2, 4), (2, 6), (2, 8), (3, 6), (3, 9), (4, 8)])
def test_seconds_of_servers_are_near_their_formula_where_they_divide_the_world(
    servers: int, world: int
) -> None:
    route = server(tuple(range(servers)))
    assert seconds(route, identity(), world) == pytest.approx(
        formula(route, identity(), world), rel=0.01
    )


@pytest.mark.parametrize(("servers", "world"), [(3, 4), (4, 6), (7, 8)])
def test_seconds_of_more_than_half_as_servers_are_those_of_their_slots(
    servers: int, world: int
) -> None:
    route, far = server(tuple(range(servers))), Link(0.05, 125e6)
    # less where a place whose peer of a slot owns nothing goes on to the next, and a little more
    # where its message meets another then
    assert (
        0.75
        < seconds(route, identity(), world, far) / formula(route, identity(), world, far)
        < 1.03
    )


def test_slots_take_no_longer_than_their_formula_says() -> None:
    for servers, world in itertools.combinations(range(2, 10), 2):
        if world < 2 * servers:
            route, far = server(tuple(range(servers))), Link(0.05, 125e6)
            assert (
                0.6
                < seconds(route, identity(), world, far) / formula(route, identity(), world, far)
                < 1.04
            )


def test_servers_that_do_not_divide_the_world_take_longer() -> None:
    for servers, world in itertools.combinations(range(2, 9), 2):
        route = server(tuple(range(servers)))
        assert 0.99 < seconds(route, identity(), world) / formula(route, identity(), world) < 2.7


def test_two_levels_on_two_wires() -> None:
    network = two_level(2, 4, 8e8, 8e6, Wire(0.0099), Wire(0.0001), message_s=1e-5)
    link = network.between(0, 4)
    assert (link.latency_s, link.rate_bytes_per_s) == (pytest.approx(0.01), 1e6)
    assert link.inside == Link(0.0001, 1e8, 1e-5)
    spec, route = bucket(), hierarchical(native(), two_shot(), 4)
    flights, inner = (launch(route, identity(), values(8, spec), spec) for _ in range(2))
    told = simulate(flights, network)
    alone = simulate(inner, *wires(link.inside))
    reckoned = route.seconds(identity(), spec, contexts_of(8)[0], link)
    # the four ranks of a node share its trunk, where the formula gives each its own: their part of
    # the bytes takes four times as long
    slow = 2 * spec.numel / 4 / 2 * 4 / link.rate_bytes_per_s
    assert told.seconds == pytest.approx(reckoned + 3 * slow, rel=0.01)
    assert alone.seconds < told.seconds / 10
    # 2 (N-1)/N · M out of a node of N = 2
    assert told.ways["node0", "core"] == told.ways["node1", "core"] == spec.numel * 4


def test_what_the_data_decides_is_not_stated() -> None:
    from thinwire.what import threshold

    spec, ctx = bucket(100), contexts_of(3)[0]
    assert gather().cost(threshold(1.0), spec, ctx, LINK) == Cost(
        None, None, LINK.seconds(*[threshold(1.0).max_nbytes(spec)] * 2)
    )
    assert gather().cost(topk(0.1), spec, ctx, LINK).sent_bytes == 2 * topk(0.1).nbytes(spec)  # type: ignore[operator]


def seconds(route: Route, codec: Codec, world: int, link: Link = LINK) -> float:
    """By the simulator, of a bucket that all cuts divide."""
    spec = bucket(2 * 27720 * 16)
    zeros = {rank: torch.zeros(spec.numel) for rank in range(world)}
    return simulate(launch(route, codec, zeros, spec), *wires(link)).seconds


def formula(route: Route, codec: Codec, world: int, link: Link = LINK) -> float:
    return max(
        route.seconds(codec, bucket(2 * 27720 * 16), ctx, link)
        for ctx in contexts_of(world).values()
    )
