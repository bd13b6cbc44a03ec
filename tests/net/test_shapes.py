"""Networks that are asked for most."""

from __future__ import annotations

import pytest

from thinwire.errors import NetworkError
from thinwire.net import LOCAL_NETWORK, Wire, two_level, uniform


def test_hosts_alike() -> None:
    network = uniform(3, 1e8, Wire(0.01), seed=4)
    assert network.names == ("host0", "host1", "host2")
    assert {(h.up_bits_per_s, h.down_bits_per_s) for h in network.hosts} == {(1e8, 1e8)}
    assert (network.wire_between(0, 2), network.seed) == (Wire(0.01), 4)


def test_nodes_of_hosts() -> None:
    network = two_level(2, 3, 1e10, 1e8, Wire(0.02), Wire(0.001))
    assert network.groups() == [["host0", "host1", "host2"], ["host3", "host4", "host5"]]
    assert network.wire_between(0, 1) == Wire(0.001)
    assert network.wire_between(0, 3).latency_s == pytest.approx(0.021)
    assert [network.bits_per_s(0, to) for to in (1, 3)] == [1e10, 1e8]


def test_no_hosts_are_refused() -> None:
    with pytest.raises(NetworkError, match="0 hosts"):
        uniform(0)


def test_what_nobody_has_measured_is_a_gigabit() -> None:
    link = LOCAL_NETWORK.between(0, 1)
    assert (link.latency_s, link.rate_bytes_per_s, link.message_s) == (100e-6, 125e6, 20e-6)
