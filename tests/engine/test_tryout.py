"""What is tried at attach on long and lossy links: alike on all ranks, counted, and gone by."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import Tensor

import thinwire
from tests.engine.models import mlp, train, weights_of
from tests.how.flights import bucket
from tests.threads import on_threads
from tests.wires import wires
from thinwire import Strategy
from thinwire.core import Codec, Driver, Link, Route
from thinwire.drive.sim import SimFabric
from thinwire.engine import probe
from thinwire.engine.observe.meter import PROBE, Meter, Report
from thinwire.engine.tryout import Tryout, Way, tried, worth_it
from thinwire.how import auto, direct, halving_doubling, native, ring
from thinwire.what import feedback, identity, topk

FAR = Link(0.02, 12.5e6, 1e-4, window_bytes=2 << 20, waits=True)


def on_wires(link: Link, world: int, work: Callable[[Driver], Any], lanes: int = 1) -> list[Any]:
    """What `work(driver)` returns on each rank of simulated wires."""
    fabric = SimFabric(world, *wires(link), timeout=timedelta(seconds=30))
    found: dict[int, Any] = {}

    def rank(number: int) -> None:
        torch.set_num_threads(1)
        found[number] = work(fabric.driver(number, lanes))

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[number] for number in range(world)]


def tried_on(
    link: Link, world: int, routes: tuple[Route, ...]
) -> tuple[tuple[Tryout, ...], tuple[Meter, ...]]:
    """What every rank finds of simulated wires, and its meter."""

    def work(driver: Driver) -> tuple[Tryout, Meter]:
        bound = [route.bind(world, link) for route in routes]
        specs = [bucket(4_000_000), bucket(10)]
        meter, cpu = Meter(world), torch.device("cpu")
        return tried(bound, (1,), specs, identity(), link, driver, meter, cpu), meter

    found, meters = zip(*on_wires(link, world, work), strict=True)
    return found, meters


def test_ranks_find_the_same_and_what_was_sent_is_counted() -> None:
    found, meters = tried_on(FAR, 4, (native(), direct(), halving_doubling()))
    assert all(each.ways == found[0].ways for each in found)
    assert len(found[0].ways) == 3
    for way in found[0].ways:  # on these wires the formulas hold
        assert found[0].times(way.route) == pytest.approx(1.0, rel=0.2)
    assert found[0].best.seconds <= 1.05 * min(way.seconds for way in found[0].ways)
    assert list(meters[0].around) == [PROBE]
    assert meters[0].setup_bytes > 3 * found[0].nbytes
    assert "tried with" in str(found[0])


def test_the_span_takes_no_longer_than_it_is_given() -> None:
    found, _ = tried_on(Link(0.02, 1e6, waits=True), 4, (native(), direct()))
    assert min(found[0].formula_s.values()) < 2.1


def test_one_way_is_not_tried() -> None:
    found, meters = tried_on(FAR, 2, (direct(),))
    assert found == (Tryout(), Tryout())
    assert meters[0].setup_bytes == 0
    assert str(found[0]) == ""
    assert found[0].times(direct()) == 1.0


def test_of_ways_that_are_alike_the_one_with_the_fewest_lanes_is_taken() -> None:
    several, few, slow = Way(ring(), 4, 1.0), Way(ring(), 1, 1.04), Way(native(), 1, 1.2)
    assert Tryout((several, few, slow)).best == few
    assert Tryout((several, slow)).best == several


def test_a_route_that_was_not_tried_counts_as_the_slowest() -> None:
    ways = Way(native(), 4, 1.1), Way(direct(), 4, 1.6), Way(direct(), 1, 2.0)
    tryout = Tryout(ways, 100, {native(): 1.0, direct(): 0.8})
    assert [tryout.times(route) for route in (native(), direct(), ring())] == [1.1, 2.0, 2.0]
    # auto() goes by it: direct() alone would be the faster one by its formula.
    route = auto(latency_s=0.05, routes=(native(), direct(), ring()))
    assert route.choose(identity(), bucket(10**7), 4) == direct()
    slower = route.corrected({native(): 1.0, direct(): 9.0, ring(): 9.0}.__getitem__)
    assert slower.choose(identity(), bucket(10**7), 4) == native()
    assert route.alternatives(identity(), 4) == (native(), direct(), ring())
    assert direct().alternatives(identity(), 4) == (direct(),)
    assert direct().corrected(tryout.times) == direct()


@pytest.mark.parametrize("what", [identity(), feedback(topk(0.1))], ids=repr)
def test_attach_tries_on_a_long_link_and_trains_as_by_hand(what: Codec) -> None:
    def work(driver: Driver, **options: Any) -> tuple[Report, Tensor]:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        strategy = Strategy(what=what, how=auto())
        with thinwire.attach(model, optimizer, strategy, driver=driver, **options) as sync:
            train(model, optimizer, driver.rank, range(4))
            sync.check()
            assert sync.strategy == strategy
            return sync.report(), weights_of(model)

    chosen = on_wires(FAR, 3, lambda driver: work(driver, lanes="auto"), lanes=4)
    by_hand = on_wires(FAR, 3, work)
    for (report, weights), (_, other) in zip(chosen, by_hand, strict=True):
        assert "tried with" in report.lane_plan
        assert report.lane_plan == chosen[0][0].lane_plan
        torch.testing.assert_close(weights, other, rtol=0, atol=1e-6)


def test_a_short_link_without_losses_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    near = Link(1e-4, 125e6, waits=True)
    assert not worth_it(near, 0.0)
    monkeypatch.setattr(probe, "measured", lambda *_: wires(near)[0])

    def work(driver: Driver) -> str:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with thinwire.attach(model, optimizer, Strategy(how=auto()), driver=driver) as sync:
            return sync.report().lane_plan

    assert set(on_threads(2, work).values()) == {""}
