"""What a network is to `tc`: rates, queues and their limits, as text; no namespace is made."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.net.networks import networks
from thinwire.lab import shape
from thinwire.net import Change, Network, Wire, uniform


@given(networks(), st.integers(0, 3), st.integers(0, 3))
def test_devices_on_the_way_have_the_rates_of_the_network(
    network: Network, source: int, to: int
) -> None:
    """The host's own device, the trunks that are crossed in that direction, the port of the
    other."""
    rates = shape.rates(network)
    on_the_way = []
    for way, rate in network.ways(source, to).items():
        if way[0] == "up":
            device = rates[network.names[source], shape.DEV]
        elif way[0] == "down":
            device = rates[None, shape.port(to)]
        else:
            number, trunk = next(
                (i, trunk)
                for i, trunk in enumerate(network.trunks)
                if set(trunk.between) == set(way)
            )
            device = rates[None, shape.trunk(number, trunk.between.index(way[0]))]
        assert device == rate
        on_the_way.append(device)
    limits = [rate for rate in on_the_way if rate is not None]
    assert network.bits_per_s(source, to) == min(limits, default=None)


def test_queues_are_for_sources_that_are_alike_at_all_times() -> None:
    assert shape.queues(uniform(4, 1e8)) == []
    [first, *others] = shape.queues(uniform(4, wire=Wire(latency_s=0.025)))
    assert first.sources == ("host1", "host2", "host3")
    assert len(others) == 3
    later = uniform(3, changes=(Change(9, pair=("host0", "host1"), loss=0.1),))
    assert [(queue.to, queue.sources, queue.lossy) for queue in shape.queues(later)] == [
        ("host0", ("host1",), True),
        ("host1", ("host0",), True),
    ]


def test_a_bucket_saves_up_little() -> None:
    line = shape.limited(uniform(2), "eth0", 1e8)
    assert (
        line
        == "qdisc replace dev eth0 root handle 1: tbf rate 100000000bit burst 16000 limit 2500000"
    )
    assert shape.limited(uniform(2), "eth0", None) == "qdisc del dev eth0 root"
