"""What a page says beside its figures."""

from __future__ import annotations

import pytest

from tests.bench.pages import a_curve, a_time
from thinwire.bench.report import bench_page, summary


def test_without_a_baseline_the_page_says_so() -> None:
    page = bench_page([a_curve("ours", [3.0, 2.0]), a_time("ours", [1.0])])
    assert "None of the contestants is a dense DDP baseline" in page
    assert summary([a_curve("ours", [3.0, 2.0]), a_time("ours", [1.0])])[0]["winner"] is False


def test_fewer_bytes_than_a_baseline_that_was_not_timed_go_by_the_closed_form() -> None:
    (row,) = summary([a_time("ours", [1.0], kernel_bytes=60.0)])
    assert row["fewer_bytes"] == pytest.approx(4 * 1000 * 2 * 3 / 4 / 60)
