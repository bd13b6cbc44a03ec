"""The spans of one rank, and how a viewer reads them."""

from __future__ import annotations

from types import SimpleNamespace

from thinwire.core import Stage
from thinwire.engine.observe.trace import Trace


def test_what_ended_before_the_start_is_left_out_and_what_had_begun_is_cut() -> None:
    trace = Trace(begun=10.0)
    trace.add("compute", "before", 8.0, 9.5)
    trace.add("compute", "across", 9.0, 11.0)
    assert trace.spans == [("compute", "across", 10.0, 11.0, {})]


def test_a_span_that_was_not_opened_is_not_closed() -> None:
    trace = Trace(begun=0.0)
    trace.closed("forward")
    assert trace.spans == []
    trace.opened("forward")
    trace.closed("forward")
    trace.closed("forward")
    assert [(track, name) for track, name, *_ in trace.spans] == [("compute", "forward")]


def test_only_stages_on_the_wire_have_bytes() -> None:
    trace = Trace(begun=0.0)
    stages = [Stage("encode", 1.0, 2.0), Stage("wire", 2.0, 4.0, 100.0)]
    trace.flown(SimpleNamespace(stages=stages), bucket=3, part=1, lane=0, step=7)  # type: ignore[arg-type]
    at = {"step": 7, "bucket": 3, "slice": 1}
    assert trace.spans == [
        ("lane 0", "encode bucket 3", 1.0, 2.0, at),
        ("lane 0", "wire bucket 3", 2.0, 4.0, at | {"sent_bytes": 100.0}),
    ]


def test_events_are_in_microseconds_and_compute_is_the_first_track() -> None:
    trace = Trace(begun=1.0)
    trace.add("lane 10", "b", 1.5, 2.0)
    trace.add("lane 2", "a", 1.0, 1.25)
    events = trace.events(rank=4)
    names = [event["args"]["name"] for event in events if event["name"] == "thread_name"]
    assert names == ["compute", "lane 2", "lane 10"]
    spans = [event for event in events if event["ph"] == "X"]
    assert [(each["pid"], each["tid"], each["ts"], each["dur"]) for each in spans] == [
        (4, 2, 0.5e6, 0.5e6),
        (4, 1, 0.0, 0.25e6),
    ]
