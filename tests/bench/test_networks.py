"""The networks of a bench: their names, and the records that have been written of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from thinwire.bench.networks import NamedNetwork, no_limits, swept
from thinwire.bench.studies import STUDY
from thinwire.errors import BenchError
from thinwire.net import Wire, two_level, uniform

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "results" / "bench" / "records.jsonl"


def test_records_are_those_that_were_committed() -> None:
    """A study goes on where it stopped only if a link is written as it was then."""
    links = [json.loads(line).get("link") for line in COMMITTED.read_text().splitlines()]
    committed = {link["name"]: link for link in links if link}
    assert {each.name: each.record() for each in STUDY.networks} == committed


def test_no_limits() -> None:
    free = no_limits(3)
    assert (free.name, free.bits_per_s, len(free.network.hosts)) == ("no limits", None, 3)


@pytest.mark.parametrize(
    "network",
    [
        two_level(2, 2, 1e9, 1e8),
        uniform(2, wire=Wire(jitter_s=0.01)),
        uniform(2, mtu_bytes=9000),
    ],
)
def test_what_a_record_cannot_say_is_refused(network: object) -> None:
    with pytest.raises(BenchError, match="take hosts that are alike"):
        NamedNetwork("odd", network)  # type: ignore[arg-type]


def test_every_rate_with_every_round_trip() -> None:
    assert [
        (each.bits_per_s, each.network.wire.latency_s) for each in swept(2, (1e8, 1e9), (0, 0.05))
    ] == [(1e8, 0), (1e8, 0.025), (1e9, 0), (1e9, 0.025)]
