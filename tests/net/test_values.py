"""Single values of a network's file: read, or refused with what was expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from thinwire.net import values


@pytest.mark.parametrize(
    ("read", "value", "result"),
    [
        (values.rate, "1mbit", 1e6),
        (values.half_time, "50ms", 0.025),
        (values.half_time, 0, 0.0),
        (values.fraction, 0, 0.0),
        (values.hosts, 2, ("host0", "host1")),
        (values.hosts, ["a"], ("a",)),
        (values.texts, {"net.a": 1}, {"net.a": "1"}),
    ],
)
def test_a_value_is_read(read: Callable[[Any], Any], value: object, result: object) -> None:
    assert read(value) == result


@pytest.mark.parametrize(
    ("read", "value", "expected"),
    [
        (values.text, 3, "expected a text, got 3"),
        (values.rate, 3, "expected a text, got 3"),
        (values.integer, True, "expected an integer, got True"),
        (values.integer, 1.5, "expected an integer, got 1.5"),
        (values.number, "2", "expected a number, got '2'"),
        (values.names, "a", "expected a list of names, got 'a'"),
        (values.two_names, ["a"], "expected two names"),
        (values.hosts, True, "expected a list of names"),
        (values.hosts, 10**9, "at most"),
        (values.texts, [1], "expected a table of settings"),
    ],
)
def test_another_is_refused(read: Callable[[Any], Any], value: object, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        read(value)
