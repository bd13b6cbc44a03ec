"""Curves and links, sorted out."""

import pytest

from thinwire.bench.results import Bench, Curve, sorted_out
from thinwire.errors import ConfigError


def test_links_without_a_limit_come_first_then_the_fastest() -> None:
    links = {
        "slow": {"rate": 1e7, "rtt": 0.0},
        "far": {"rate": 1e9, "rtt": 0.05},
        "near": {"rate": 1e9, "rtt": 0.0},
        "free": {"rate": None},
    }
    assert Bench(links=links).fastest_first == ["free", "near", "far", "slow"]


def test_steps_to_a_loss_lie_between_validations() -> None:
    curve = {
        "kind": "curve",
        "name": "a",
        "contestant": "ddp",
        "settings": {},
        "seed": 0,
        "validation": [[10, 3.0], [20, 2.0]],
    }
    made: Curve = sorted_out([curve], baseline="a").curves["a"]
    assert made.steps_to(2.5) == 15.0
    assert made.steps_to(3.0) == 10.0
    assert made.steps_to(1.0) is None


def test_what_is_no_record_is_refused() -> None:
    with pytest.raises(ConfigError):
        sorted_out([{"kind": "wish", "name": "a"}])
