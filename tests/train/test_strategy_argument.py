"""Strategies and models as words on a command line."""

from __future__ import annotations

import pytest

from thinwire.errors import StrategyError
from thinwire.train.strategy_argument import strategy_from


def test_settings_after_a_colon() -> None:
    with pytest.raises(
        StrategyError,
        match=(
            "no recipe is called 'diloco:period=5'; settings follow a comma, as in diloco,key=value"
        ),
    ):
        strategy_from("diloco:period=5")
