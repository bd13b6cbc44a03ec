"""What a network holds: paths, rates, schedules, the alpha-beta view; and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.net.networks import networks
from thinwire.errors import NetworkError
from thinwire.net import Change, Host, Network, Pair, Transport, Trunk, Wire, two_level, uniform


def test_wires_add_up_along_the_path() -> None:
    network = two_level(2, 2, 1e10, 1e8, wire=Wire(0.025, 0.005, 0.19))
    assert network.wire_between("host0", "host1") == Wire()
    far = network.wire_between("host0", "host2")
    assert (far.latency_s, far.jitter_s) == (0.025, 0.005)
    assert far.loss == pytest.approx(0.19)
    assert network.wire_between("host2", "host0") == far
    assert network.bits_per_s("host0", "host1") == 1e10
    assert network.bits_per_s("host0", "host3") == 1e8
    assert network.groups() == [["host0", "host1"], ["host2", "host3"]]


def test_rates_have_a_direction() -> None:
    network = Network((Host("a", 1e6, 5e6), Host("b", 3e6, 4e6)))
    assert (network.bits_per_s("a", "b"), network.bits_per_s("b", "a")) == (1e6, 3e6)


def test_a_schedule_is_a_function_of_the_second() -> None:
    changes = (
        Change(30, up_bits_per_s=2e7, down_bits_per_s=2e7),
        Change(60, 5, cut=("host2",)),
        Change(40, 10, latency_s=0.1),
        Change(45, pair=("host0", "host1"), loss=0.5),
    )
    network = uniform(3, 1e8, Wire(latency_s=0.025), changes=changes)
    assert network.moments() == [30, 40, 45, 50, 60, 65]
    assert [network.at(second).hosts[0].up_bits_per_s for second in (0, 29.9, 30, 1000)] == [
        1e8,
        1e8,
        2e7,
        2e7,
    ]
    latencies = [
        network.at(second).wire_between("host0", "host2").latency_s for second in (39, 40, 49.9, 50)
    ]
    assert latencies == [0.025, 0.1, 0.1, 0.025]
    assert network.at(46).wire_between("host0", "host1") == Wire(0.1, 0, 0.5)
    assert network.at(51).wire_between("host0", "host1") == Wire(0.025, 0, 0.5)
    assert [network.cut_at(second) for second in (59, 60, 64.9, 65)] == [
        frozenset(),
        {"host2"},
        {"host2"},
        frozenset(),
    ]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: uniform(0), "0 hosts"),
        (lambda: Network((Host("a"), Host("a"))), "same name"),
        (lambda: Network((Host("a b"),)), "no name"),
        (lambda: Network((Host("a"), Host("b", switch="far"))), "no link leads from switch to far"),
        (
            lambda: Network(
                (Host("a"), Host("b", switch="x"), Host("c", switch="y")),
                _links("switch x", "x y", "y switch"),
            ),
            "loop",
        ),
        (
            lambda: Network((Host("a"), Host("b", switch="x")), _links("switch x", "x switch")),
            "two links",
        ),
        (lambda: Network((Host("a"),), _links("switch switch")), "two different"),
        (lambda: Network((Host("a", slow=0.5),)), "slow=0.5"),
        (lambda: uniform(2, wire=Wire(loss=1.0)), "below 100%"),
        (lambda: uniform(2, wire=Wire(latency_s=-1)), "from 0 to 60"),
        (lambda: uniform(2, mtu_bytes=100), "mtu=100"),
        (lambda: uniform(2, queue_s=0.0), "queue=0"),
        (lambda: uniform(2, bits_per_s=0.0), "a rate is a positive number"),
        (lambda: uniform(2, float("nan")), "up_bits_per_s=nan.*a rate is a positive number"),
        (lambda: uniform(2, message_s=-1.0), "message_s=-1 is not from 0 to 60 s"),
        (lambda: uniform(2, changes=(Change(1, loss=2.0),)), "change at 1 s: .* below 100%"),
        (lambda: uniform(2, pairs=(Pair(("host0", "host0"), Wire()),)), "a pair is two"),
        (lambda: uniform(2, changes=(Change(1),)), "changes nothing"),
        (lambda: uniform(2, changes=(Change(-1, up_bits_per_s=1e6),)), "begins at 0"),
        (lambda: uniform(2, changes=(Change(1, cut=("host7",)),)), "names host7"),
        (
            lambda: uniform(2, changes=(Change(1, trunk=("a", "b"), up_bits_per_s=1e6),)),
            "there is none",
        ),
        (
            lambda: uniform(2, changes=(Change(1, pair=("host0", "host1"), up_bits_per_s=1e6),)),
            "no rate of its own",
        ),
        (
            lambda: uniform(2, changes=(Change(1, hosts=("host0",), latency_s=0.1),)),
            "hosts have rates",
        ),
    ],
)
def test_contradictions_are_refused(make: Callable[[], Network], reason: str) -> None:
    with pytest.raises(NetworkError, match=reason):
        make()


def _links(*ends: str) -> tuple[Trunk, ...]:
    return tuple(Trunk(tuple(each.split())) for each in ends)  # type: ignore[arg-type]


@given(networks(), st.integers(0, 3), st.integers(0, 3))
def test_the_alpha_beta_view_is_of_the_path(network: Network, source: int, to: int) -> None:
    link = network.between(source, to, Transport(window_bytes=5, waits=True))
    wire, rate = network.wire_between(source, to), network.bits_per_s(source, to)
    assert link.latency_s == wire.latency_s + wire.jitter_s / 2
    assert link.rate_bytes_per_s == (math.inf if rate is None else rate / 8)
    assert (link.window_bytes, link.waits, link.message_s) == (5, True, network.message_s)


@given(networks(), st.integers(0, 3), st.integers(0, 3))
def test_latency_and_loss_are_the_same_both_ways(network: Network, one: int, other: int) -> None:
    there, back = network.wire_between(one, other), network.wire_between(other, one)
    assert there.latency_s == pytest.approx(back.latency_s)
    assert there.loss == pytest.approx(back.loss)


@given(st.floats(1e3, 1e11), st.floats(0, 30), st.floats(0, 0.9), st.integers(1, 3))
def test_the_view_is_symmetric_where_links_are(
    bits_per_s: float, latency_s: float, loss: float, nodes: int
) -> None:
    network = two_level(nodes, 2, 1e10, bits_per_s, Wire(latency_s, loss=loss))
    for one in range(2 * nodes):
        for other in range(2 * nodes):
            assert network.between(one, other) == network.between(other, one)


def test_a_sender_with_neighbours_has_a_way_inside() -> None:
    network = two_level(2, 2, 1e10, 1e8, Wire(0.05), Wire(1e-4))
    outer = network.between(0, 2)
    assert outer.inside == network.between(0, 1)
    assert network.between(0, 1).inside is None
    assert uniform(3).between(0, 2).inside is None


def test_who_is_no_host_is_refused() -> None:
    with pytest.raises(NetworkError, match="rank 2 has no host: the network has 2"):
        uniform(2).between(0, 2)
    with pytest.raises(NetworkError, match="there is no host 'host7'; there are host0, host1"):
        uniform(2).between("host0", "host7")
