"""Simulated wires: who waits for whom, who shares what, and that no real time passes."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.drive.hops import bytes_of, flight
from tests.how.flights import bucket, launch, values
from tests.net.networks import networks
from tests.wires import wires
from thinwire.core import AllReduce, Exchange, Link
from thinwire.drive.local import run
from thinwire.drive.sim import Launch, SimFabric, simulate
from thinwire.engine import attach
from thinwire.errors import FlightError, NetworkError
from thinwire.how import direct, native, two_shot
from thinwire.net import Host, Network, Pair, Transport, Wire, two_level, uniform
from thinwire.strategy import Strategy
from thinwire.what import identity
from thinwire.what import uniform as levels

SLOW = Link(latency_s=1.0, rate_bytes_per_s=100.0)


def to(*sends: tuple[int, int]) -> Exchange:
    return Exchange(tuple((rank, bytes_of(n)) for rank, n in sends), ())


def at(*recvs: tuple[int, int]) -> Exchange:
    return Exchange((), recvs)


def swap(peer: int, n: int) -> Exchange:
    return Exchange(((peer, bytes_of(n)),), ((peer, n),))


def test_a_message_leaves_and_then_arrives() -> None:
    told = simulate({0: flight(to((1, 200))), 1: flight(at((0, 200)))}, *wires(SLOW))
    assert told.ends == {0: 2.0, 1: 3.0}
    assert (told.sent_bytes, told.messages) == ({0: 200.0, 1: 0.0}, {0: 1, 1: 0})
    assert told.ways == {("up", "host0"): 200.0, ("down", "host1"): 200.0}
    assert [(e.rank, e.kind, e.begin, e.end, e.peer, e.nbytes) for e in told.events] == [
        (0, "send", 0.0, 2.0, 1, 200.0),
        (1, "wait", 0.0, 3.0, None, 0.0),
    ]


def test_both_directions_at_once() -> None:
    assert simulate({0: flight(swap(1, 200)), 1: flight(swap(0, 200))}, *wires(SLOW)).seconds == 3.0


def test_sends_go_out_one_at_a_time_in_the_order_given() -> None:
    told = simulate(
        {0: flight(to((2, 100), (1, 100))), 1: flight(at((0, 100))), 2: flight(at((0, 100)))},
        *wires(SLOW),
    )
    assert told.ends == {0: 2.0, 1: 3.0, 2: 2.0}


def test_each_message_holds_its_sender() -> None:
    told = simulate(
        {0: flight(to((1, 100), (1, 100))), 1: flight(at((0, 100)), at((0, 100)))},
        *wires(Link(1.0, 100.0, message_s=0.5)),
    )
    assert told.ends == {0: 3.0, 1: 4.0}


def test_a_way_is_shared_evenly_and_what_one_leaves_the_other_takes() -> None:
    """Two senders to one host: 50 bytes a second each until the short one has left, then 100."""
    told = simulate(
        {0: flight(to((2, 100))), 1: flight(to((2, 200))), 2: flight(at((0, 100), (1, 200)))},
        *wires(SLOW),
    )
    assert told.ends == {0: 2.0, 1: 3.0, 2: 4.0}


def test_hosts_have_rates_of_their_own_and_pairs_latencies() -> None:
    flights = {0: (to((1, 100)),), 1: (at((0, 100)),)}

    def end(
        up: float = 100.0, down: float = 100.0, pairs: tuple[Pair, ...] = (), hosts: int = 2
    ) -> float:
        """Rates in bytes per second: of rank 0 out, and of rank 1 in."""
        ends = (Host("host0", 8 * up, 800.0), Host("host1", 800.0, 8 * down), Host("host2"))
        network = Network(ends[:hosts], wire=Wire(1.0), pairs=pairs)
        return simulate({rank: flight(*hops) for rank, hops in flights.items()}, network).seconds

    assert end() == 2.0
    assert end(up=10.0) == 11.0
    assert end(down=50.0) == 3.0
    assert end(pairs=(Pair(("host1", "host0"), Wire(5.0)),)) == 6.0
    assert end(pairs=(Pair(("host0", "host2"), Wire(5.0)),), hosts=3) == 2.0


def test_ranks_of_a_node_share_its_trunk_and_talk_within_it_on_another_wire() -> None:
    network = two_level(2, 2, inner_bits_per_s=8000, outer_bits_per_s=800, wire=Wire(1.0))
    across = simulate(
        {
            0: flight(to((2, 100))),
            1: flight(to((3, 100))),
            2: flight(at((0, 100))),
            3: flight(at((1, 100))),
        },
        network,
    )
    assert across.seconds == 3.0
    assert across.ways["node0", "core"] == across.ways["core", "node1"] == 200
    within = simulate(
        {
            0: flight(swap(1, 100)),
            1: flight(swap(0, 100)),
            2: flight(swap(3, 100)),
            3: flight(swap(2, 100)),
        },
        network,
    )
    assert within.seconds == 0.1
    opposite = simulate(
        {
            0: flight(to((2, 100))),
            1: flight(at((3, 100))),
            2: flight(at((0, 100))),
            3: flight(to((1, 100))),
        },
        network,
    )
    assert opposite.seconds == 2.0, "a trunk is full duplex"


def test_bytes_take_no_time_where_nothing_limits_them() -> None:
    free = simulate({0: flight(swap(1, 10**6)), 1: flight(swap(0, 10**6))}, uniform(2))
    assert (free.seconds, free.sent_bytes[0]) == (0.0, 10**6)
    far = uniform(4, wire=Wire(1.0))
    flights = {rank: flight(AllReduce(torch.ones(8), (0, 1, 2, 3))) for rank in range(4)}
    assert simulate(flights, far, Transport(window_bytes=4)).seconds == pytest.approx(6 * (1 + 2))


@given(networks(), st.integers(0, 3), st.integers(0, 3))
def test_one_message_takes_what_the_alpha_beta_view_says(
    network: Network, source: int, receiver: int
) -> None:
    """So the simulator, the lab (`test_shape`) and cost formulas have the same rates."""
    if source == receiver:
        return
    report = simulate(
        {source: flight(to((receiver, 999))), receiver: flight(at((source, 999)))}, network
    )
    assert report.seconds == pytest.approx(network.between(source, receiver).seconds(999))
    assert set(report.ways) == set(network.ways(source, receiver))


def test_lanes_run_side_by_side_on_the_same_wires() -> None:
    def launches(count: int) -> list[Launch]:
        return [Launch({0: flight(swap(1, 100)), 1: flight(swap(0, 100))}) for _ in range(count)]

    one = simulate([launches(4)], *wires(SLOW))
    two = simulate([launches(2), launches(2)], *wires(SLOW))
    assert one.seconds == 8.0  # each 1 s on its way out and 1 s until it is there
    assert two.seconds == 6.0  # two share the rate: 2 s out, 1 s to arrive, twice
    assert [len(lane) for lane in two.outcomes] == [2, 2]
    fat = simulate([launches(1)] * 1 + [launches(1)] * 1, *wires(Link(1.0, 1e9)))
    assert fat.seconds == pytest.approx(1.0)


def test_flights_start_when_they_may_and_ranks_think() -> None:
    launches = [
        Launch({0: flight(swap(1, 100)), 1: flight(swap(0, 100))}, at={0: 3.0}),
        Launch({0: flight(), 1: flight()}, at=9.0),
    ]
    assert simulate([launches[:1]], *wires(SLOW)).ends == {0: 4.0, 1: 5.0}
    assert simulate([[Launch({0: flight(), 1: flight()}, at=9.0)]], *wires(SLOW)).seconds == 9.0
    told = simulate(
        {0: flight(swap(1, 100)), 1: flight(swap(0, 100))},
        *wires(SLOW),
        think=lambda rank, n: 0.5 * rank + n,
    )
    # Rank 1 begins at 0.5, so rank 0 has received all at 2.5 and rank 1 at 2; then they think for
    # 1 and 1.5.
    assert told.ends == {0: 3.5, 1: 3.5}


def test_the_transports_all_reduce_is_a_ring() -> None:
    def end(link: Link) -> float:
        flights = {
            rank: flight(AllReduce(torch.full((100,), float(rank)), (0, 1, 2, 3)))
            for rank in range(4)
        }
        told = simulate(flights, *wires(link))
        assert all(outcome.total.tolist() == [6.0] * 100 for outcome in told.outcome.values())
        assert (told.sent_bytes, told.messages) == (
            dict.fromkeys(range(4), 600.0),
            dict.fromkeys(range(4), 6),
        )
        return told.seconds

    assert end(SLOW) == pytest.approx(6 * (1 + 1.0))
    assert end(Link(1.0, 100.0, window_bytes=20)) == pytest.approx(
        6 * (1 + 1 + 4 * 1.8)
    )  # 4 times a round trip of 2 s, less a window


def test_all_reduces_of_groups_are_side_by_side_and_wait_for_the_last() -> None:
    flights = {
        rank: flight(AllReduce(torch.ones(2), (rank % 2, rank % 2 + 2))) for rank in range(4)
    }
    told = simulate([[Launch(flights, at={3: 7.0})]], *wires(SLOW))
    assert told.ends[0] == told.ends[2] == pytest.approx(2 * 1.04)
    assert told.ends[1] >= told.ends[3] - 1.1
    assert told.ends[3] == pytest.approx(7 + 2 * 1.04)


def test_nothing_moves_for_nothing() -> None:
    told = simulate(
        {
            0: flight(swap(1, 0), AllReduce(torch.empty(0), (0, 1))),
            1: flight(swap(0, 0), AllReduce(torch.empty(0), (0, 1))),
        },
        *wires(SLOW),
    )
    assert (told.seconds, told.messages) == (0.0, {0: 0, 1: 0})


def test_the_flights_are_those_of_the_other_drivers_and_no_time_passes() -> None:
    spec, begin = bucket(), time.perf_counter()
    for route, codec in ((two_shot(), levels(4)), (native(), identity())):
        one, other = (launch(route, codec, values(5, spec), spec) for _ in range(2))
        told = simulate(one, *wires(Link(30.0, 0.01)))
        assert told.seconds > 2 * 30
        assert all(
            torch.equal(told.outcome[rank].total, outcome.total)
            for rank, outcome in run(other).items()
        )
    assert time.perf_counter() - begin < 60


def test_the_same_flights_take_the_same_time_whatever_the_order_of_ranks() -> None:
    spec = bucket()
    seconds = set()
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        flights = launch(direct(), identity(), values(4, spec), spec)
        seconds.add(simulate({rank: flights[rank] for rank in order}, *wires(SLOW)).seconds)
    assert len(seconds) == 1


def test_what_nobody_sends_is_told() -> None:
    with pytest.raises(
        FlightError,
        match=r"no rank can go on: rank 1 waits in an exchange, for 5 bytes from rank 0",
    ):
        simulate({0: flight(), 1: flight(at((0, 5)))}, *wires(SLOW))


def test_a_missing_rank_is_told() -> None:
    spec = bucket()
    flights = launch(two_shot(), identity(), values(3, spec), spec)
    del flights[2]
    with pytest.raises(
        FlightError,
        match=r"no rank can go on: rank 0 waits in an exchange, for .* bytes from rank 2",
    ):
        simulate(flights, *wires(SLOW))


def test_what_nobody_takes_is_told() -> None:
    with pytest.raises(
        FlightError, match="all ranks are done and nobody took 5 bytes from rank 0 to rank 1"
    ):
        simulate({0: flight(to((1, 5))), 1: flight()}, *wires(SLOW))


def test_a_payload_of_another_size_is_told() -> None:
    with pytest.raises(FlightError, match="rank 1 expects 6 bytes from rank 0 and 5 came"):
        simulate({0: flight(to((1, 5))), 1: flight(at((0, 6)))}, *wires(SLOW))


def test_different_tensors_in_one_all_reduce_are_told() -> None:
    with pytest.raises(FlightError, match="of different tensors"):
        simulate(
            {rank: flight(AllReduce(torch.ones(rank + 1), (0, 1))) for rank in (0, 1)}, *wires(SLOW)
        )


def test_a_rank_without_a_host_is_refused() -> None:
    with pytest.raises(NetworkError, match="rank 1 has no host"):
        simulate({0: flight(to((1, 5))), 1: flight(at((0, 5)))}, uniform(1))


def test_an_engine_on_simulated_wires_meters_virtual_seconds() -> None:
    fabric = SimFabric(2, *wires(Link(0.5, 1e6)))

    def rank(number: int) -> float:
        torch.set_num_threads(1)
        model = nn.Linear(100, 100)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with attach(model, optimizer, Strategy(how=direct()), driver=fabric.driver(number)) as sync:
            model(torch.full((1, 100), float(number))).sum().backward()
            return sum(row.wire_s for row in sync.meter.rows)

    with ThreadPoolExecutor(2) as pool:
        waited = list(pool.map(rank, range(2)))
    assert waited[0] == waited[1] == pytest.approx(2 * (0.5 + 10100 * 2 / 1e6))
    assert fabric.clock_s[0] == pytest.approx(waited[0])


def test_a_message_waits_for_its_receivers_word() -> None:
    gloo = wires(Link(1.0, 100.0, waits=True))
    assert (
        simulate({0: flight(swap(1, 100)), 1: flight(swap(0, 100))}, *gloo).seconds == 3.0
    )  # there and back, and a second to send
    late = simulate(
        [[Launch({0: flight(to((1, 100))), 1: flight(at((0, 100)))}, at={1: 5.0})]], *gloo
    )
    assert late.ends == {0: 7.0, 1: 8.0}
    early = simulate(
        [[Launch({0: flight(to((1, 100))), 1: flight(at((0, 100)))}, at={0: 5.0})]], *gloo
    )
    assert early.ends == {0: 6.0, 1: 7.0}  # the word had come long before
    with pytest.raises(FlightError, match="rank 0 has bytes for rank 1, which does not expect any"):
        simulate({0: flight(to((1, 5))), 1: flight()}, *gloo)
