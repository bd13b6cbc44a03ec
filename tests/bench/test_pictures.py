"""The figures of a page: losses, the parts of a step, and whole runs against their prediction."""

from __future__ import annotations

import re

import pytest

from tests.bench.pages import LINKS, TINY, Balanced, Record, a_curve, a_time
from thinwire.bench.comparison import Comparison
from thinwire.bench.pictures import against_bytes, against_seconds, breakdown, proof
from thinwire.bench.records import for_page
from thinwire.bench.report import bench_page, summary
from thinwire.bench.results import sorted_out


def test_a_whole_run_that_never_is_at_the_target_is_told() -> None:
    never = {"kind": "whole", "name": "dense", "link": LINKS[0], "seed": 0, "error": None}
    never |= {"validation": [[10, 5.0], [50, 4.5]], "points": [[10, 1.0, 5.0], [50, 5.0, 4.5]]}
    small = a_time("dense", [0.1], "ddp", kind="small")
    records = for_page([*TINY, small, never])
    assert (records[-1]["measured_s"], records[-1]["same_losses"]) == (None, False)
    assert records[-1]["predicted_s"] == pytest.approx(4.0)
    assert "not reached" in Balanced(bench_page(records)).text


def page_of(records: list[Record]) -> Comparison:
    return Comparison(sorted_out(records), summary(records))


def test_what_parts_do_not_explain_is_drawn_as_the_rest() -> None:
    parts = {"compute_s": 0.3, "input_s": None, "encode_s": 0.1, "exposed_s": 0.2}
    records = [TINY[0], a_time("ours", [1.0, 1.0], **parts), a_time("all", [0.6], **parts)]
    text = re.sub("<.*?>", " ", breakdown(page_of(records)))
    assert re.search(r"ours: compute 300 ms, encode 100 ms, exposed 200 ms, untold 400 ms", text)
    assert "all: compute 300 ms, encode 100 ms, exposed 200 ms;" in text


def test_steps_below_a_second_are_in_milliseconds() -> None:
    records = [TINY[0], a_time("ours", [0.02], compute_s=0.01)]
    assert "compute 10.0 ms, untold 10.0 ms" in breakdown(page_of(records))


def test_a_contestant_without_seconds_or_bytes_has_no_line() -> None:
    records = [*TINY, a_curve("untimed", [5.0, 1.0])]
    page = page_of(records)
    for drawing in (against_seconds(page), against_bytes(page)):
        assert "Lines of dense, ours." in drawing
    records[-1]["bytes_per_step"] = 10.0
    assert "Lines of dense, ours, untimed." in against_bytes(page_of(records))


def test_nothing_is_drawn_of_nothing() -> None:
    page = page_of([a_curve("alone", [3.0, 2.0], "ddp")])
    assert (against_seconds(page), against_bytes(page), breakdown(page), proof(page)) == ("",) * 4


def test_a_proof_says_by_how_much_it_is_off() -> None:
    whole = {"kind": "whole", "name": "ours", "seed": 1, "target": 2.0}
    whole |= {"link": {"name": "slow", "rate": 1e6, "rtt": 0.1}, "predicted_s": 16.0}
    whole |= {"measured_s": 17.6, "points": [[10, 4.0, 5.0], [40, 17.6, 2.0]]}
    text = proof(page_of([*TINY, whole | {"same_losses": True}]))
    assert "+10.0" in text
    assert "yes, bit for bit" in text
    assert "Predicted and measured loss: ours on slow, seed 1" in text
    assert 'class="error">it broke<' in proof(page_of([*TINY, whole | {"error": "it broke"}]))
