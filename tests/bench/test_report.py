"""The report of a bench: its figures by hand, what is refused, and how a page is written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.bench.pages import ENVIRONMENT, TINY, Record, a_curve, a_time, plausible
from thinwire.bench.report import bench_page, runs_page, summary, write
from thinwire.cli.report import finished
from thinwire.errors import ConfigError


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return plausible()


def test_figures_by_hand() -> None:
    ours, dense = summary(TINY)
    assert (ours["name"], dense["name"]) == ("ours", "dense")  # the quickest first
    assert ours["target_nats"] == pytest.approx(2.0)  # dense at 40 of 50 steps
    assert (dense["steps_to_target"], ours["steps_to_target"]) == (
        pytest.approx(40),
        pytest.approx(40),
    )
    assert (ours["rounds"], ours["timed_steps"], ours["step_mean_s"]) == (2, 4, pytest.approx(0.4))
    assert (ours["step_median_s"], ours["step_p10_s"], ours["step_p90_s"]) == (
        pytest.approx(0.2),
        pytest.approx(0.2),
        pytest.approx(0.76),
    )
    assert (dense["time_to_target_s"], ours["time_to_target_s"]) == (
        pytest.approx(80),
        pytest.approx(16),
    )
    assert (dense["speedup"], ours["speedup"]) == (1, pytest.approx(5))
    assert ours["tokens_per_s"] == pytest.approx(160)  # 4 steps of 64 tokens in 1.6 s
    assert ours["bytes_per_step"] == pytest.approx(450)  # 600 once, 400 three times
    assert (ours["fewer_bytes"], dense["fewer_bytes"]) == (pytest.approx(6000 / 450), 1)
    assert ours["bytes_to_target"] == pytest.approx(450 * 40)
    assert (ours["final_nats"], ours["final_spread"], ours["seeds"]) == (
        pytest.approx(1.6),
        pytest.approx(0.2 / math.sqrt(2)),
        2,
    )
    assert (dense["final_spread"], ours["gap"]) == (None, pytest.approx(0.6))
    assert [(each["at"], each["nats"]) for each in ours["targets"]] == [
        (0.4, 4),
        (0.6, pytest.approx(3)),
        (0.8, pytest.approx(2)),
        (1, 1),
    ]
    assert [each["winner"] for each in ours["targets"]] == [True, True, True, False]
    assert ours["targets"][3]["s"] is None  # 1.6 at its best


def test_between_validations_the_mean_is_read_linearly() -> None:
    ours = summary([*TINY[:2], a_curve("ours", [6.0, 3.5, 1.5]), a_time("ours", [1.0])])[0]
    assert ours["targets"][1]["steps"] == pytest.approx(
        20 + 10 * 0.5 / 2.0
    )  # 3 nats, between 3.5 at 20 and 1.5 at 30


def test_the_winner_is_the_quickest_of_its_link(records: list[Record]) -> None:
    told = summary(records)
    for link in {row["link"] for row in told}:
        here = [row for row in told if row["link"] == link]
        times = [row["time_to_target_s"] for row in here if row["time_to_target_s"] is not None]
        assert [row["time_to_target_s"] for row in here if row["winner"]] == (
            [min(times)] if times else []
        )
        assert times == sorted(times)


def test_what_a_summary_says_is_plain_data(records: list[Record]) -> None:
    json.dumps(summary(records), allow_nan=False)


def test_a_seed_that_diverged_is_told_and_not_averaged() -> None:
    ours = summary([*TINY, a_curve("ours", [5.0, math.nan], seed=2)])[0]
    assert (ours["seeds"], ours["errors"]) == (2, ["seed 2: the loss was no number at step 20"])


def test_a_round_that_failed_is_told_beside_those_that_went_well() -> None:
    ours = summary([*TINY, a_time("ours", [9.0], round=2, error="timed out")])[0]
    assert (ours["rounds"], ours["step_mean_s"], ours["errors"]) == (
        2,
        pytest.approx(0.4),
        ["round 2: timed out"],
    )


def test_one_link_of_two_sizes_is_two_links() -> None:
    lost = a_time("ours", [], world=None, parameters=None, error="lost")
    told = summary([*TINY, a_time("ours", [1.0], world=8), lost])
    assert {row["link"] for row in told} == {
        "slow · 4 ranks · 0.001 M parameters",
        "slow · 8 ranks · 0.001 M parameters",
        "slow",
    }


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([], "nothing to report"),
        ([ENVIRONMENT], "nothing to report"),
        ([{"kind": "walk"}], "record 1 is of kind 'walk'"),
        (
            [*TINY, {"kind": "curve", "contestant": "ddp"}],
            "record 7, of kind curve, lacks name and validation",
        ),
        ([a_time("x", [1.0]) | {"link": {"rate": 1e6}}], "a link without a name"),
        ([a_curve("x", [1.0], "ddp"), a_curve("x", [1.0])], "'x' is a name of ddp and of thinwire"),
        (
            [a_curve("x", [1.0]), a_curve("y", [1.0], parameters=2000)],
            "of models of 1000 and 2000 parameters",
        ),
    ],
)
def test_what_cannot_be_reported_is_refused(records: list[Record], why: str) -> None:
    for tell in (summary, bench_page):
        with pytest.raises(ConfigError, match=why):
            tell(records)


def test_a_page_of_no_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to report"):
        runs_page(*finished([]))
    with pytest.raises(ConfigError, match="no such folder"):
        finished([tmp_path / "none"])


def test_a_page_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = write("old", tmp_path / "page.html")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ConfigError, match="No space left"):
        write("new", place)
    assert (place.read_text(), list(tmp_path.iterdir())) == ("old", [place])
