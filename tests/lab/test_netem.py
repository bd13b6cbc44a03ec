"""The devices and lines of `tc` around netem, with a plain queue in its place where the kernel has
none: it delays nothing."""

from __future__ import annotations

import sys

import pytest

from tests.lab.possible import why_not
from thinwire.lab import Lab, shape
from thinwire.net import Change, Host, Network, Pair, Wire, uniform

FLOOD = """
import os, socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end = time.monotonic() + 0.5
while time.monotonic() < end:
    s.sendto(bytes(1000), ("host1", 7000))
"""


@pytest.fixture
def _no_netem(monkeypatch: pytest.MonkeyPatch) -> None:
    real = shape.netem

    def plain(*said: object) -> str:
        return real(*said).partition(" netem ")[0] + " pfifo limit 400000"  # type: ignore[arg-type]

    monkeypatch.setattr(shape, "netem", plain)


needs_labs = pytest.mark.skipif(bool(why := why_not()), reason=why)


@needs_labs
@pytest.mark.usefixtures("_no_netem")
def test_the_queue_of_a_thin_link_down_is_as_short_as_asked() -> None:
    hosts = (Host("host0"), Host("host1", down_bits_per_s=1e6))
    with Lab(Network(hosts, wire=Wire(latency_s=0.005), queue_s=0.2), "netem") as lab:
        lab.call("host0", [sys.executable, "-c", FLOOD])
        count = lab.counts()["host1"]
    assert count.dropped > 100
    assert 5e4 < count.received_bytes < 2e5, "half a second, the queue and the bucket, at a megabit"


@needs_labs
@pytest.mark.usefixtures("_no_netem")
def test_a_scheduled_rate_leaves_the_delay_in_place() -> None:
    changes = (
        Change(1, up_bits_per_s=1e7, down_bits_per_s=1e7),
        Change(2, latency_s=0.025),
        Change(3, cut=("host1",)),
    )
    pairs = (Pair(("host0", "host2"), Wire(latency_s=0.05)),)
    with Lab(uniform(3, wire=Wire(latency_s=0.005), pairs=pairs, changes=changes), "netem") as lab:
        for second in (1, 2, 3, 2, 0):
            lab.apply(second)
        assert "tbf" not in lab.call(None, ["tc", "qdisc", "show"]), "it is as it was at first"
        for device, sources in (("n0", 2), ("n1", 1)):
            assert lab.call(None, ["tc", "qdisc", "show", "dev", device]).count("pfifo") == sources
        assert lab.call("host2", ["sh", "-c", "hostname; ls /sys/class/net"]).split() == [
            "host2",
            "eth0",
            "lo",
        ]


def test_each_netem_has_a_seed_of_its_own_where_it_takes_one() -> None:
    network = uniform(2, wire=Wire(0.025, 0.005, 0.01), seed=7)
    queues = shape.queues(network)
    lines = [shape.netem(network, queue, 1, "add", seeded=True) for queue in queues]
    assert [line.rpartition(" seed ")[2] for line in lines] == [
        str(7 * 65536 + 1),
        str(7 * 65536 + 2),
    ]
    assert lines[0].startswith(
        "qdisc add dev n0 parent 10:1 handle 11: netem limit 400000 delay 27500us 2500us loss "
        "random 1.000000% seed"
    )
    assert "seed" not in shape.netem(network, queues[0], 1, "add", seeded=False)
