"""What a run is made of: what cannot be is told before ranks meet."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.train.runs import small
from thinwire.engine.observe.meter import Meter
from thinwire.errors import ConfigError, StrategyError
from thinwire.train.progress import Account
from thinwire.train.setup import prepare_run
from thinwire.train.spoken import strategy_from


@pytest.mark.parametrize("strategy", ["dense", "fedpaq,period=8"])
def test_a_text_of_five_bytes_has_a_sentence_of_its_own(strategy: str, tmp_path: Path) -> None:
    (tmp_path / "five.txt").write_text("hello")
    config = small(
        data=str(tmp_path / "five.txt"),
        cache=str(tmp_path / "cache"),
        strategy=strategy,
        context=128,
    )
    says = (
        r"five.txt: the text is too short: 5 tokens to train on and 2 held out, and a row of "
        r"--context 128 takes 129 of each; "
    )
    with pytest.raises(
        ConfigError,
        match=says + r"give a text of at least 2,580 tokens or so, or a lower --context",
    ):
        prepare_run(config)


def test_settings_after_a_colon() -> None:
    with pytest.raises(
        StrategyError,
        match=(
            "no recipe is called 'diloco:period=5'; settings follow a comma, as in diloco,key=value"
        ),
    ):
        strategy_from("diloco:period=5")


class Synced:
    def __init__(self) -> None:
        self.meter = Meter(2)

    def report(self) -> object:
        return self.meter.report()


@pytest.mark.parametrize("saved_by", ["this version", "an older one"])
def test_bytes_beside_the_schedule_go_on_with_a_run(saved_by: str) -> None:
    first, second = Synced(), Synced()
    for sync in (first, second):
        sync.meter.count("attach: measuring the link", 100.0)
    first.meter.count("step 3: validation", 20.0)
    told = Account(first, 1).state()  # type: ignore[arg-type]
    if saved_by == "an older one":
        told["around"] = 120.0
    Account(second, 1).take_up(told, 4)  # type: ignore[arg-type]
    assert second.meter.setup_bytes == 220.0
    named = {"link probe": 200.0, "validation": 20.0}
    assert second.meter.around == (
        named if saved_by == "this version" else {"link probe": 100.0, "before it went on": 120.0}
    )
    assert dataclasses.asdict(second.meter)["around"] == second.meter.around
