"""Ranks that hold the shards of one replica decide alike."""

from __future__ import annotations

import pytest

from tests.threads import on_threads
from thinwire.core import Driver
from thinwire.engine.observe.meter import Meter
from thinwire.engine.replica import Replica
from thinwire.errors import AttachError


def test_a_rank_alone_decides_by_itself() -> None:
    alone, meter = Replica(), Meter(1)
    assert (alone.ranks, alone.name, alone.members) == (1, "", None)
    assert alone.any(True, meter, "any")
    assert not alone.any(False, meter, "any")
    assert alone.total(2.5, meter, "total") == 2.5
    alone.refuse_problems("", meter, "attach")
    with pytest.raises(AttachError, match="a problem"):
        alone.refuse_problems("a problem", meter, "attach")
    alone.close()


def test_what_one_rank_finds_all_find() -> None:
    def decide(driver: Driver) -> list[object]:
        replica, meter = Replica([driver]), Meter(3)
        found = [replica.any(driver.rank == at, meter, "any") for at in (2, 7)]
        total = replica.total(driver.rank + 0.5, meter, "total")
        try:
            replica.refuse_problems("of rank 1" * (driver.rank == 1), meter, "attach")
        except AttachError as error:
            return [replica.name, replica.ranks, found, total, str(error)]
        return []

    for rank, made in on_threads(3, decide).items():
        assert made == [f"{rank}/3", 3, [True, False], 4.5, "of rank 1"]
