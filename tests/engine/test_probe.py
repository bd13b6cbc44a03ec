"""What is measured at attach, and that a choice by it is the same on every rank."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import Any

import pytest
import torch

import thinwire
from tests.engine.models import mlp, train, weights_of
from tests.ranks import run_ranks
from tests.wires import wires
from thinwire import Strategy
from thinwire.core import Handle, Link, Spec
from thinwire.drive.sim import SimFabric
from thinwire.drive.torch import TorchDriver
from thinwire.engine import probe
from thinwire.engine.observe.meter import Meter
from thinwire.how import auto, ring, two_shot
from thinwire.net import LOCAL_NETWORK
from thinwire.on import gradients, parameters
from thinwire.what import identity, uniform
from thinwire.when import every, warmup


def measured(world: int, link: Link) -> list[Link]:
    """What every rank finds of simulated wires."""
    return measured_on(link, [Meter(world) for _ in range(world)])[0]


def measured_on(link: Link, meters: list[Meter]) -> tuple[list[Link], float]:
    """What every rank finds of simulated wires, and the seconds that the hops of the slowest
    took."""
    world = len(meters)
    fabric = SimFabric(world, *wires(link), timeout=timedelta(seconds=30))
    found: dict[int, Link] = {}
    handles: dict[int, list[Handle]] = {number: [] for number in range(world)}

    def rank(number: int) -> None:
        driver = fabric.driver(number)
        start = driver.start

        def noted(*args: Any, **more: Any) -> Handle:
            handles[number].append(start(*args, **more))
            return handles[number][-1]

        driver.start = noted  # type: ignore[method-assign]
        found[number] = probe.measured(driver, meters[number], torch.device("cpu")).between(
            0, 1, driver.transport
        )

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = max(sum(handle.wire_s for handle in own) for own in handles.values())
    return [found[number] for number in range(world)], seconds


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
        return (
            [row.route for row in report.rows],
            str(report),
            torch.cat([p.detach().view(-1) for p in model.parameters()]),
        )


def test_the_choice_is_alike_on_all_ranks_and_told() -> None:
    (routes, shown, own), *others = run_ranks(3, _ours)
    assert all(route == routes and torch.equal(weights, own) for route, _, weights in others)
    assert all(routes)
    assert routes[0] in shown


def _cost(rank: int) -> tuple[float, float, dict[str, float], Link]:
    """Seconds, bytes by cause, and what was found over loopback."""
    driver = TorchDriver(None, 1, timedelta(seconds=30), torch.device("cpu"))
    driver.prepare(())
    meter = Meter(2)
    begun = time.perf_counter()
    found = probe.measured(driver, meter, torch.device("cpu")).between(0, 1)
    seconds = time.perf_counter() - begun
    driver.close()
    return seconds, meter.setup_bytes, meter.around, found


@pytest.mark.parametrize("world", [2, 3])
def test_over_loopback_it_takes_a_second_at_most(world: int) -> None:
    """A few megabytes are enough where a byte is there at once; on a busy machine it is not, and
    the budget ends it."""
    for seconds, sent, around, found in run_ranks(world, _cost):
        assert sent < 3.1 * probe.MOST
        assert list(around) == ["link probe"]
        assert found.rate_bytes_per_s > 1e6  # other tests may run beside it
        assert seconds < 3, "one second and a last turn; other tests may run beside it"


@pytest.mark.parametrize(
    ("link", "most_s", "most_bytes"),
    [
        (Link(0.0001, 125e6, waits=True), 0.3, 14e6),
        (Link(0.0001, 1.25e6, waits=True), 0.6, 400e3),
        (Link(0.001, 125e3, waits=True), 1.2, 140e3),
        (Link(0.025, 125e6, waits=True), 1.1, 80e6),
        (Link(0.1, 125e6, waits=True), 4.5, 100e6),
        (Link(0.3, 12.5e6, waits=True), 13.0, 60e6),
    ],
    ids=["1 Gb/s", "10 Mb/s", "1 Mb/s", "1 Gb/s, 50 ms", "1 Gb/s, 200 ms", "100 Mb/s, 600 ms"],
)
def test_it_ends_in_about_a_second_and_all_ranks_measure_alike(
    link: Link, most_s: float, most_bytes: float
) -> None:
    """On the wire's own clock; on long links it takes 20 round trips, and the turn in which they
    end."""
    meters = [Meter(3) for _ in range(3)]
    found, seconds = measured_on(link, meters)
    assert len(set(found)) == 1
    assert found[0].rate_bytes_per_s == pytest.approx(link.rate_bytes_per_s, rel=0.02)
    assert len({meter.setup_bytes for meter in meters}) == 1
    assert meters[0].setup_bytes < most_bytes
    assert seconds < most_s


@pytest.mark.parametrize("latency_s", [0.025, 0.1])
def test_the_rate_of_a_long_link_is_found(latency_s: float) -> None:
    """Its round trip takes longer than the bytes of the first turns."""
    link = Link(latency_s, rate_bytes_per_s=125e6, waits=True)
    assert measured(2, link)[0].rate_bytes_per_s == pytest.approx(link.rate_bytes_per_s, rel=0.02)


def test_a_route_that_hangs_on_no_link_measures_nothing() -> None:
    assert not two_shot(slot_bytes=1 << 20).needs_link
    assert two_shot().needs_link
    model = mlp()
    with thinwire.attach(
        model, torch.optim.SGD(model.parameters(), 0.1), Strategy(how=ring())
    ) as sync:
        assert [row.route for row in sync.report().rows] == [""] * len(sync.buckets)


LONG = Link(
    latency_s=0.025, rate_bytes_per_s=125e6, message_s=1e-4, window_bytes=2 << 20, waits=True
)


def _dense(rank: int, link: Link | None) -> tuple[str, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two dense steps, then the mean of parameters that have drifted apart; the link is as told,
    whatever would be measured."""
    network = LOCAL_NETWORK if link is None else wires(link)[0]
    probe.measured = lambda *_: network  # type: ignore[assignment]  # in a process of its own
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(
        model,
        optimizer,
        Strategy(warmup(2, every(1)), uniform(4, block=64), two_shot(), gradients()),
    ) as sync:
        train(model, optimizer, rank, range(2))
        sync.check()
        large = Spec((), 0, 16_000_000, torch.float32)
        chosen = repr(sync.flights.bound.dense.choose(identity(), large, 3))
    stepped = weights_of(model)
    with torch.no_grad():
        for param in model.parameters():
            param.fill_(rank)
    with thinwire.attach(
        model,
        torch.optim.SGD(model.parameters(), 0.1),
        Strategy(every(9), how=two_shot(), on=parameters()),
    ) as sync:
        with torch.no_grad():  # attach has made them equal
            for param in model.parameters():
                param.add_(rank)
        with sync.common_weights() as shown:
            common = weights_of(shown)
        return chosen, stepped, common, weights_of(model)


def test_dense_ticks_and_common_weights_go_by_what_is_fastest_on_the_link() -> None:
    """gloo's own all-reduce waits for its window at each round trip, so on a long link it is not
    the one."""
    far, near = run_ranks(3, _dense, LONG), run_ranks(3, _dense, None)
    for chosen, stepped, common, own in far:
        assert chosen.startswith("direct(")
        torch.testing.assert_close(stepped, near[0][1], rtol=0, atol=1e-6)
        assert torch.equal(stepped, far[0][1])
        assert bool((common == 1).all())  # the mean of 0, 1 and 2
        assert bool((own == own[0]).all())
    assert [told[0] for told in near] == ["native()"] * 3
    assert [float(told[3][0]) for told in far] == [0, 1, 2]


def test_what_a_shaper_lets_pass_at_once_is_not_in_the_rate() -> None:
    points = [(1, 0.001)]
    for nbytes in (1 << 14, 1 << 16, 1 << 18):
        points.append((nbytes, 0.001 + max(nbytes - 16_000, 0) / 2.5e6))
        if len(points) > 2:
            assert probe._slope(points) == pytest.approx(2.5e6, rel=0.01)


def test_the_loss_is_what_the_kernel_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = iter(range(1, 100))
    monkeypatch.setattr(probe, "segments", lambda: (200 * (n := next(counted)), n))
    fabric, found = SimFabric(2, *wires(Link(0.005, 12.5e6)), timeout=timedelta(seconds=30)), {}

    def rank(number: int) -> None:
        driver = fabric.driver(number)
        found[number] = probe.measured(driver, Meter(2), torch.device("cpu")).wire.loss

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: pytest.approx(0.005), 1: pytest.approx(0.005)}
