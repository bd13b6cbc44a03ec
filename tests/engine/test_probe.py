"""What is measured at attach, and that a choice by it is the same on every rank."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta

import pytest
import torch

import thinwire
from tests.engine.models import mlp, train, weights_of
from tests.ranks import run_ranks
from thinwire import Strategy
from thinwire.core import LOCAL_NETWORK, Link, Spec
from thinwire.drive.sim import SimFabric, Wires
from thinwire.engine import probe
from thinwire.engine.meter import Meter
from thinwire.how import auto, ring, two_shot
from thinwire.on import gradients, parameters
from thinwire.what import identity, uniform
from thinwire.when import every, warmup


def measured(world: int, link: Link) -> list[Link]:
    """What every rank finds of simulated wires."""
    fabric = SimFabric(world, Wires(link), timedelta(seconds=30))
    found: dict[int, Link] = {}

    def rank(number: int) -> None:
        driver = fabric.driver(number)
        found[number] = probe.measured(driver, Meter(world), torch.device("cpu"), replace(LOCAL_NETWORK, waits=link.waits))

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[number] for number in range(world)]


@pytest.mark.parametrize("world", [2, 3, 5])
@pytest.mark.parametrize("waits", [False, True])
def test_a_simulated_link_is_found_as_it_is(world: int, waits: bool) -> None:
    link = Link(latency_s=0.005, rate_bytes_per_s=12.5e6, message_s=0.0005, waits=waits)
    told = measured(world, link)
    assert len(set(told)) == 1
    found = told[0]
    assert found.rate_bytes_per_s == pytest.approx(link.rate_bytes_per_s, rel=0.02)
    assert found.seconds(1) == pytest.approx(link.seconds(1), rel=0.01)
    if world > 2:  # of two ranks, one message cannot tell the way from what it costs its sender
        assert found.latency_s == pytest.approx(link.latency_s, rel=0.03)
        assert found.message_s == pytest.approx(link.message_s, rel=0.02)


def _ours(rank: int) -> tuple[list[str], str, torch.Tensor]:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    strategy = Strategy(every(1), uniform(4, block=64), auto(), gradients())
    with thinwire.attach(model, optimizer, strategy, bucket_bytes=256) as sync:
        train(model, optimizer, rank, range(4))
        sync.check()
        report = sync.report()
        return [row.route for row in report.rows], str(report), torch.cat([p.detach().view(-1) for p in model.parameters()])


def test_the_choice_is_alike_on_all_ranks_and_told() -> None:
    (routes, shown, own), *others = run_ranks(3, _ours)
    assert all(route == routes and torch.equal(weights, own) for route, _, weights in others)
    assert all(routes)
    assert routes[0] in shown


@pytest.mark.parametrize("latency_s", [0.025, 0.1])
def test_the_rate_of_a_long_link_is_found(latency_s: float) -> None:
    """Its round trip takes longer than the bytes of the first turns."""
    link = Link(latency_s, rate_bytes_per_s=125e6, waits=True)
    assert measured(2, link)[0].rate_bytes_per_s == pytest.approx(link.rate_bytes_per_s, rel=0.02)


def test_a_route_that_hangs_on_no_link_measures_nothing() -> None:
    assert not two_shot(slot_bytes=1 << 20).measures
    assert two_shot().measures
    model = mlp()
    with thinwire.attach(model, torch.optim.SGD(model.parameters(), 0.1), Strategy(how=ring())) as sync:
        assert [row.route for row in sync.report().rows] == [""] * len(sync.buckets)


LONG = Link(latency_s=0.025, rate_bytes_per_s=125e6, message_s=1e-4, window_bytes=2 << 20, waits=True)


def _dense(rank: int, link: Link | None) -> tuple[str, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two dense steps, then the mean of parameters that have drifted apart; the link is as told, whatever would be measured."""
    probe.measured = lambda *_: link  # type: ignore[assignment]  # in a process of its own
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(model, optimizer, Strategy(warmup(2, every(1)), uniform(4, block=64), two_shot(), gradients())) as sync:
        train(model, optimizer, rank, range(2))
        sync.check()
        large = Spec((), 0, 16_000_000, torch.float32)
        chosen = repr(sync.flights.dense.choose(identity(), large, 3))
    stepped = weights_of(model)
    with torch.no_grad():
        for param in model.parameters():
            param.fill_(rank)
    with thinwire.attach(model, torch.optim.SGD(model.parameters(), 0.1), Strategy(every(9), how=two_shot(), on=parameters())) as sync:
        with torch.no_grad():  # attach has made them equal
            for param in model.parameters():
                param.add_(rank)
        with sync.common_weights() as shown:
            common = weights_of(shown)
        return chosen, stepped, common, weights_of(model)


def test_dense_ticks_and_common_weights_go_by_what_is_fastest_on_the_link() -> None:
    """gloo's own all-reduce waits for its window at each round trip, so on a long link it is not the one."""
    far, near = run_ranks(3, _dense, LONG), run_ranks(3, _dense, None)
    for chosen, stepped, common, own in far:
        assert chosen.startswith("direct(")
        torch.testing.assert_close(stepped, near[0][1], rtol=0, atol=1e-6)
        assert torch.equal(stepped, far[0][1])
        assert bool((common == 1).all())  # the mean of 0, 1 and 2
        assert bool((own == own[0]).all())
    assert [told[0] for told in near] == ["native()"] * 3
    assert [float(told[3][0]) for told in far] == [0, 1, 2]
