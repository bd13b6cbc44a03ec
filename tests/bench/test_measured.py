"""Figures of a record, from what ranks report."""

from typing import Any

import pytest

from thinwire.bench import measured
from thinwire.bench.job import Job

MODEL = {"vocab": 16, "context": 8, "layers": 1, "heads": 1, "width": 8}
JOB = Job("ddp", {}, MODEL, "", "", batch=2)


def rank(seconds: list[float], **more: Any) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "losses": [3.0] * len(seconds),
        "validation": [[2, 1.5]],
        "split": {},
        "sent_bytes": 100.0,
        "burst_bytes": 60.0,
        "input_s": 0.2,
        "warm": 1,
        "peak_bytes": 7,
        "setup_s": 0.5,
    } | more


def test_warm_steps_are_not_timed_and_the_slowest_rank_counts() -> None:
    figures = measured.times(JOB, [rank([9.0, 1.0, 3.0]), rank([9.0, 2.0, 4.0], peak_bytes=9)])
    assert figures["step_s"] == [1.5, 3.5]
    assert (figures["slowest_s"], figures["peak_bytes"]) == (3.0, 9)
    assert figures["compute_s"] is None, "a library that does not split its time says nothing"
    split = {"encode_s": 0.4, "exposed_s": 0.6, "metered_bytes": 80.0}
    own = measured.times(JOB, [rank([9.0, 1.0, 3.0], split=split)])
    assert own["compute_s"] == pytest.approx(2.0 - (0.4 + 0.6 + 0.2) / 2)


def test_bytes_of_a_curve_are_metered_where_a_library_meters() -> None:
    assert measured.curve(JOB, [rank([1.0] * 4)])["bytes_per_step"] == 25.0
    split = {"metered_bytes": 40.0}
    assert measured.curve(JOB, [rank([1.0] * 4, split=split)])["bytes_per_step"] == 10.0


def test_points_of_a_whole_run_have_the_seconds_until_them() -> None:
    figures = measured.whole(JOB, [rank([1.0, 2.0]), rank([3.0, 4.0], burst_bytes=90.0)])
    assert figures["points"] == [[2, 5.0, 1.5]]
    assert figures["burst_bytes"] == 90.0
