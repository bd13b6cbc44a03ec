"""A network as a TOML file: there and back, as people write it, and what is refused."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given

from tests.net.networks import networks
from thinwire.errors import NetworkError
from thinwire.net import Network, Wire, network_of, read, table_of, uniform


@given(networks())
def test_a_file_reads_back_to_the_same_network(network: Network) -> None:
    again = network_of(table_of(network))
    assert table_of(again) == table_of(network)
    assert again.moments() == network.moments()
    for one in network.hosts:
        for other in network.hosts:
            rates = [each.bits_per_s(one.name, other.name) for each in (again, network)]
            assert rates[0] == rates[1]


@given(networks())
def test_the_table_is_toml(network: Network) -> None:
    table = table_of(network)
    assert tomllib.loads(tomli_w.dumps(table)) == table


def test_a_file_has_times_there_and_back_and_a_network_one_way() -> None:
    network = network_of({"hosts": 2, "rtt": "50ms", "jitter": "10ms", "message": "20us"})
    assert network.wire == Wire(0.025, 0.005, 0)
    assert network.message_s == pytest.approx(2e-5)
    assert network_of(table_of(network)) == uniform(2, wire=network.wire, message_s=2e-5)


def test_a_file_is_refused_with_all_reasons_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    path.write_text(
        'hosts = 2\nrat = "1mbit"\nrtt = "50"\n[host.host9]\nup = "1mbit"\n[[change]]\ncut = '
        '["host0"]\n'
    )
    with pytest.raises(NetworkError) as caught:
        read(path)
    text = str(caught.value)
    for part in (
        "'rat'; did you mean 'rate'?",
        "rtt: expected a time such as 50ms (us, ms, s), got '50'",
        "host.host9 is none of the hosts",
        "change 1: at is missing",
    ):
        assert part in text
    assert text.count(str(path)) == 4


@pytest.mark.parametrize(
    "text",
    [
        "hosts = 2\nloss = 0.5",
        "hosts = true",
        "hosts = 2\nhost = 3",
        "hosts = 2\n[[link]]\nrate = '1mbit'",
        "rate = '1mbit'",
        "= 3",
    ],
)
def test_what_is_no_network_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    path.write_text(text)
    with pytest.raises(NetworkError, match=r"lab\.toml"):
        read(path)


def test_a_file_as_people_write_it(tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    table = {
        "hosts": 4,
        "rate": "100mbit",
        "rtt": "50ms",
        "host": {"host2": {"up": "20mbit", "slow": 2.0, "switch": "east"}},
        "link": [{"between": ["switch", "east"], "rate": "50mbit", "rtt": "40ms"}],
        "pair": [{"between": ["host0", "host3"], "loss": "1%"}],
        "change": [{"at": "30s", "rate": "20mbit"}, {"at": "60s", "lasts": "5s", "cut": ["host2"]}],
    }
    path.write_text(tomli_w.dumps(table))
    network = read(path)
    assert network.wire_between("host0", "host2").latency_s == pytest.approx(0.045)
    assert network.wire_between("host0", "host3") == Wire(0.025, 0, 0.01)
    assert (network.bits_per_s("host2", "host0"), network.bits_per_s("host0", "host2")) == (
        2e7,
        5e7,
    )
    assert network.at(30).bits_per_s("host0", "host1") == 2e7


def test_a_pair_of_unknown_hosts_is_refused() -> None:
    with pytest.raises(
        NetworkError, match="a pair is two of the hosts host0, host1, not host0 and"
    ):
        network_of({"hosts": 2, "pair": [{"between": ["host0", "host9"], "loss": "1%"}]})
