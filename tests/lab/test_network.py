"""What a network says of itself: paths, wires, schedules, lab files; no namespace is made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from thinwire.errors import LabError
from thinwire.lab import (
    Change,
    Host,
    Link,
    Network,
    Pair,
    Wire,
    network_of,
    read,
    shape,
    table_of,
    two_level,
    uniform,
    units,
)

RATES = st.none() | st.integers(8_000, 10**11).map(float)
SECONDS = st.integers(0, 60_000_000).map(lambda us: us / 1e6)
WIRES = st.builds(Wire, SECONDS, SECONDS, st.integers(0, 9999).map(lambda n: n / 10_000))


@st.composite
def networks(draw: st.DrawFn) -> Network:
    switches = ["switch", "east", "west"][: draw(st.integers(1, 3))]
    hosts = [
        Host(
            f"host{i}",
            draw(RATES),
            draw(RATES),
            draw(st.sampled_from(switches)),
            draw(st.sampled_from([1.0, 2.5])),
        )
        for i in range(4)
    ]
    hosts[0] = replace(hosts[0], switch="switch")
    links = [
        Link(
            (draw(st.sampled_from(switches[:i])), switches[i]),
            draw(RATES),
            draw(RATES),
            draw(WIRES),
        )
        for i in range(1, len(switches))
    ]
    pairs = [Pair(("host0", "host3"), draw(WIRES))] if draw(st.booleans()) else []
    changes = [
        Change(3.0, 2.0, cut=("host1",)),
        Change(1.0, up=2e6),
        Change(1.5, pair=("host1", "host2"), rtt=0.25),
    ]
    return Network(
        tuple(hosts),
        tuple(links),
        draw(WIRES),
        tuple(pairs),
        tuple(draw(st.permutations(changes))),
        sysctl={"net.a.b": "1"},
    )


@given(networks())
def test_a_lab_file_reads_back_to_the_same(network: Network) -> None:
    told = network_of(table_of(network))
    assert table_of(told) == table_of(network)
    assert told.moments() == network.moments()
    for one in network.hosts:
        for other in network.hosts:
            rates = [each.rate(one.name, other.name) for each in (told, network)]
            assert rates[0] == rates[1]


@given(st.integers(8_000, 10**12), st.integers(0, 10**8))
def test_units_say_what_they_read(rate: int, microseconds: int) -> None:
    assert units.rate(units.rate_words(rate)) == pytest.approx(rate, rel=1e-11)
    assert units.seconds(units.seconds_words(microseconds / 1e6)) == pytest.approx(
        microseconds / 1e6, rel=1e-11
    )


@pytest.mark.parametrize("text", ["", "10", "mbit", "-1mbit", "1e9bit", "10zbit", "nan", "1kbit"])
def test_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match=r"rate|below"):
        units.rate(text)


def test_wires_add_up_along_the_path() -> None:
    network = two_level(2, 2, inner=1e10, outer=1e8, wire=Wire(0.05, 0.01, 0.19))
    assert network.between("host0", "host1") == Wire()
    far = network.between("host0", "host2")
    assert (far.rtt, far.jitter) == (0.05, 0.01)
    assert far.loss == pytest.approx(0.19)
    assert network.between("host2", "host0") == far
    assert network.rate("host0", "host1") == 1e10
    assert network.rate("host0", "host3") == 1e8
    assert network.groups() == [["host0", "host1"], ["host2", "host3"]]


def test_rates_have_a_direction() -> None:
    network = Network((Host("a", up=1e6, down=5e6), Host("b", up=3e6, down=4e6)))
    assert (network.rate("a", "b"), network.rate("b", "a")) == (1e6, 3e6)


def test_a_schedule_is_a_function_of_the_second() -> None:
    changes = (
        Change(30, up=2e7, down=2e7),
        Change(60, 5, cut=("host2",)),
        Change(40, 10, rtt=0.2),
        Change(45, pair=("host0", "host1"), loss=0.5),
    )
    network = uniform(3, rate=1e8, wire=Wire(rtt=0.05), changes=changes)
    assert network.moments() == [30, 40, 45, 50, 60, 65]
    assert [network.at(second).hosts[0].up for second in (0, 29.9, 30, 1000)] == [
        1e8,
        1e8,
        2e7,
        2e7,
    ]
    assert [network.at(second).between("host0", "host2").rtt for second in (39, 40, 49.9, 50)] == [
        0.05,
        0.2,
        0.2,
        0.05,
    ]
    assert network.at(46).between("host0", "host1") == Wire(0.2, 0, 0.5)
    assert network.at(51).between("host0", "host1") == Wire(0.05, 0, 0.5)
    assert [network.cut_at(second) for second in (59, 60, 64.9, 65)] == [
        frozenset(),
        {"host2"},
        {"host2"},
        frozenset(),
    ]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: uniform(0), "0 hosts"),
        (lambda: uniform(65), "65 hosts"),
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
        (lambda: uniform(2, wire=Wire(rtt=-1)), "from 0 to 60"),
        (lambda: uniform(2, mtu=100), "mtu=100"),
        (lambda: uniform(2, queue=0.0), "queue=0"),
        (lambda: uniform(2, rate=1e12), r"queue=0.2 s at 1000 Gb/s is more than the 4.29 GB"),
        (
            lambda: uniform(2, queue=60.0, changes=(Change(1, up=1e10),)),
            "queue=60 s at 10 Gb/s is more",
        ),
        (
            lambda: uniform(2, sysctl={"fs.inotify.max_queued_events": "9"}),
            r"the whole machine's, not a host's: only net\.\*",
        ),
        (lambda: uniform(2, pairs=(Pair(("host0", "host0"), Wire()),)), "a pair is two"),
        (lambda: uniform(2, changes=(Change(1),)), "changes nothing"),
        (lambda: uniform(2, changes=(Change(-1, up=1e6),)), "begins at 0"),
        (lambda: uniform(2, changes=(Change(1, cut=("host7",)),)), "speaks of host7"),
        (lambda: uniform(2, changes=(Change(1, link=("a", "b"), up=1e6),)), "there is none"),
        (
            lambda: uniform(2, changes=(Change(1, pair=("host0", "host1"), up=1e6),)),
            "no rate of its own",
        ),
        (lambda: uniform(2, changes=(Change(1, hosts=("host0",), rtt=0.1),)), "hosts have rates"),
    ],
)
def test_contradictions_are_refused(make: object, told: str) -> None:
    with pytest.raises(LabError, match=told):
        make()  # type: ignore[operator]


def _links(*ends: str) -> tuple[Link, ...]:
    return tuple(Link(tuple(each.split())) for each in ends)  # type: ignore[arg-type]


def test_a_lab_file_tells_all_its_faults_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    path.write_text(
        'hosts = 2\nrat = "1mbit"\nrtt = "50"\n[host.host9]\nup = "1mbit"\n[[change]]\ncut = '
        '["host0"]\n'
    )
    with pytest.raises(LabError) as caught:
        read(path)
    told = str(caught.value)
    for part in (
        "'rat'; did you mean 'rate'?",
        "rtt: '50' is no time",
        "host.host9 is none of the hosts",
        "change 1: at is missing",
    ):
        assert part in told
    assert told.count(str(path)) == 4


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
def test_no_lab_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    path.write_text(text)
    with pytest.raises(LabError, match=r"lab\.toml"):
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
    assert network.between("host0", "host2").rtt == pytest.approx(0.09)
    assert network.between("host0", "host3") == Wire(0.05, 0, 0.01)
    assert (network.rate("host2", "host0"), network.rate("host0", "host2")) == (2e7, 5e7)
    assert network.at(30).rate("host0", "host1") == 2e7


def test_queues_are_for_sources_that_are_alike_at_all_times() -> None:
    assert shape.queues(uniform(4, rate=1e8)) == []
    [first, *others] = shape.queues(uniform(4, wire=Wire(rtt=0.05)))
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
