"""Which hosts have queues, and how late packets were."""

from thinwire.lab.delay import LineStats, by_host
from thinwire.net import Pair, Wire, uniform


def test_only_hosts_that_something_delays_have_queues() -> None:
    network = uniform(3, pairs=(Pair(("host0", "host1"), Wire(loss=0.5)),))
    assert {host: [queue.sources for queue in some] for host, some in by_host(network).items()} == {
        "host0": [("host1",)],
        "host1": [("host0",)],
    }
    assert by_host(uniform(3)) == {}


def test_lateness_in_words() -> None:
    assert LineStats("netem").lateness == "how late is not measured"
    assert LineStats("queue", max_late_ms=1.25).lateness == "at most 1.2 ms late"
