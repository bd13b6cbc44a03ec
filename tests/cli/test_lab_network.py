"""The network that flags or a file describe, and flags that describe none."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from thinwire.cli._lab_network import network_flags, requested_network
from thinwire.errors import LabError
from thinwire.net import Network


def requested(*flags: str) -> Network:
    parser = argparse.ArgumentParser()
    network_flags(parser)
    return requested_network(parser.parse_args(flags))


def test_links_between_nodes_have_two_ways() -> None:
    network = requested(
        "--nodes", "2", "--inner-rate", "10gbit", "--up", "100mbit", "--down", "10mbit"
    )
    assert [
        (trunk.between[1], trunk.up_bits_per_s, trunk.down_bits_per_s) for trunk in network.trunks
    ] == [("core", 1e8, 1e7)] * 2
    assert network.bits_per_s("host0", "host1") == 1e7
    assert {(host.up_bits_per_s, host.down_bits_per_s) for host in network.hosts} == {(1e10, 1e10)}


def test_without_flags_there_are_two_hosts_without_limits() -> None:
    network = requested()
    assert [host.name for host in network.hosts] == ["host0", "host1"]
    assert network.bits_per_s("host0", "host1") is None


def test_a_rate_is_up_and_down_and_either_may_differ() -> None:
    network = requested("--hosts", "3", "--rate", "100mbit", "--down", "20mbit")
    assert {(host.up_bits_per_s, host.down_bits_per_s) for host in network.hosts} == {(1e8, 2e7)}
    assert requested("--rtt", "50ms").wire == requested("--rtt", "0.05s").wire


def test_hosts_may_be_slow_and_have_settings_also_between_nodes() -> None:
    flags = ["--hosts", "4", "--slow", "host1=2", "--slow", "host3=1.5"]
    flags += ["--sysctl", "net.ipv4.tcp_sack=0", "--seed", "7"]
    for nodes in ([], ["--nodes", "2", "--inner-rate", "1gbit"]):
        network = requested(*flags, *nodes)
        assert [host.slow for host in network.hosts] == [1.0, 2.0, 1.0, 1.5]
        assert network.sysctl == {"net.ipv4.tcp_sack": "0"}
        assert network.seed == 7


def test_a_file_is_the_network_and_excludes_other_flags(tmp_path: Path) -> None:
    file = tmp_path / "lab.toml"
    file.write_text('hosts = 3\nrate = "10mbit"\n')
    assert requested("--file", str(file)) == requested("--hosts", "3", "--rate", "10mbit")
    with pytest.raises(
        LabError, match="--file says what the network is; leave out --rtt, --inner-rate"
    ):
        requested("--file", str(file), "--rtt", "1ms", "--inner-rate", "1gbit")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--nodes", "2"], "--nodes and --inner-rate belong together"),
        (["--inner-rate", "1gbit"], "--nodes and --inner-rate belong together"),
        (
            ["--hosts", "3", "--nodes", "2", "--inner-rate", "1gbit"],
            "cannot share 3 --hosts evenly",
        ),
        (["--nodes", "2", "--inner-rate", "fast"], "--inner-rate: "),
        (["--slow", "host1"], "'host1' is not --slow HOST=TIMES"),
        (["--slow", "host1="], "'host1=' is not --slow HOST=TIMES"),
        (["--slow", "host1=twice"], "--slow: 'twice' is no number"),
        (["--sysctl", "=1"], "'=1' is not --sysctl KEY=VALUE"),
    ],
)
def test_flags_that_describe_no_network_are_refused(flags: list[str], reason: str) -> None:
    with pytest.raises(LabError, match=reason):
        requested(*flags)
