"""Values of flags: what is read, and what the error says."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import Any

import pytest

from thinwire.train import values


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (values.count, "1_000", 1000),
        (values.whole, "0", 0),
        (values.interval, "auto", "auto"),
        (values.interval, "50", "50"),
        (values.positive, "3e-4", 3e-4),
        (values.fraction, "1", 1.0),
        (values.switch, "true", True),
        (values.one_of("adamw", "sgd"), "sgd", "sgd"),
    ],
)
def test_a_value_is_read(parse: Callable[[str], Any], text: str, value: Any) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "error"),
    [
        (values.count, "0", "expected an integer of at least 1, got '0'"),
        (values.whole, "-1", "expected an integer of at least 0, got '-1'"),
        (values.whole, "²", "expected an integer of at least 0, got '²'"),
        (values.whole, str(1 << 63), f"expected an integer of at least 0, got '{1 << 63}'"),
        (values.positive, "inf", "expected a number above 0, got 'inf'"),
        (values.positive, "much", "expected a number above 0, got 'much'"),
        (values.fraction, "1.5", "expected a number from 0 to 1, got '1.5'"),
        (values.switch, "yes", "expected true or false, got 'yes'"),
        (
            values.one_of("adamw", "sgd"),
            "sdg",
            "expected adamw or sgd, got 'sdg'; did you mean 'sgd'?",
        ),
    ],
)
def test_a_wrong_value_is_refused(parse: Callable[[str], Any], text: str, error: str) -> None:
    with pytest.raises(ArgumentTypeError) as raised:
        parse(text)
    assert str(raised.value) == error
