"""The figures of a page: predicted and measured runs."""

from __future__ import annotations

import pytest

from tests.bench.pages import LINKS, TINY, Balanced, a_time
from thinwire.bench.records import for_page
from thinwire.bench.report import bench_page


def test_a_whole_run_that_never_is_at_the_target_is_told() -> None:
    never = {"kind": "whole", "name": "dense", "link": LINKS[0], "seed": 0, "error": None}
    never |= {"validation": [[10, 5.0], [50, 4.5]], "points": [[10, 1.0, 5.0], [50, 5.0, 4.5]]}
    small = a_time("dense", [0.1], "ddp", kind="small")
    records = for_page([*TINY, small, never])
    assert (records[-1]["measured_s"], records[-1]["same_losses"]) == (None, False)
    assert records[-1]["predicted_s"] == pytest.approx(4.0)
    assert "not reached" in Balanced(bench_page(records)).text
