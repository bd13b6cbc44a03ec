"""How far a run has come."""

from __future__ import annotations

import dataclasses

import pytest

from thinwire.engine.observe.meter import Meter
from thinwire.train.progress import Account


class Synced:
    def __init__(self) -> None:
        self.meter, self.step = Meter(2), 7

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
    Account(second, 1).continue_from(told, 4)  # type: ignore[arg-type]
    assert second.meter.setup_bytes == 220.0
    named = {"link probe": 200.0, "validation": 20.0}
    assert second.meter.around == (
        named if saved_by == "this version" else {"link probe": 100.0, "before it went on": 120.0}
    )
    assert dataclasses.asdict(second.meter)["around"] == second.meter.around
