"""What benchmarks/README.md says of the bench is what its commands say of the committed records."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_table, evidence, headline
from thinwire.bench.records import RECORDS, read

HERE = Path(__file__).parents[2] / "benchmarks"


def prose(*parts: str) -> str:
    """Read a page as one line, so that a sentence may be wrapped anywhere."""
    return " ".join(HERE.parent.joinpath(*parts).read_text(encoding="utf-8").split())


def test_the_table_of_the_bench(capsys: pytest.CaptureFixture[str]) -> None:
    bench_table.main(str(HERE / "results" / "bench"))
    text = (HERE / "README.md").read_text()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) > 20
    assert not [row for row in rows if row not in text]


def test_what_stands_beneath_the_table_of_the_bench(capsys: pytest.CaptureFixture[str]) -> None:
    bench_table.main(str(HERE / "results" / "bench"))
    told, text = capsys.readouterr().out, prose("benchmarks", "README.md")
    ahead = re.findall(r"^\d+ [GM]b/s, \d+ ms: ([\d.]+) \(", told, re.MULTILINE)
    assert f"ours in all six: {', '.join(ahead[:-1])} and {ahead[-1]} times as fast" in text
    [(cells, median, least, most)] = re.findall(
        r"first, (\d+) cells: ([\d.]+) in the median, ([\d.]+) to ([\d.]+)", told
    )
    assert (
        f"of {cells} cells the second round took {median} times the first in the median, "
        f"{least} to {most}"
    ) in text
    [(middle, worst)] = re.findall(
        r"with delay: ([\d.]+) ms in the median, ([\d.]+) at worst", told
    )
    assert f"is {middle} ms late in the median, {worst} at worst" in text
    assert f"is {middle} ms late in the median and {worst} at worst" in prose("docs", "lab.md")
    [target] = re.findall(r"steps, ([\d.]+) nats", told)
    assert f"{target} nats, the hardest" in text


@pytest.fixture
def records() -> list[dict[str, Any]]:
    return [
        record
        for name in ("bench", "headline")
        for record in read(HERE / "results" / name / RECORDS)
    ]


def test_the_seconds_to_the_loss_at_ddps_end(records: list[dict[str, Any]]) -> None:
    text = (HERE / "README.md").read_text()
    rows = headline.found(records, seeds=3)
    assert len(rows) == 6
    lines = [f"| {' | '.join(each.row)} |" for each in rows]
    assert not [line for line in lines if line not in text]


def test_the_minutes_of_the_front_page(records: list[dict[str, Any]]) -> None:
    """Both margins stand beside each other, and the models of which the minutes are made are
    named."""
    text = (HERE.parent / "README.md").read_text()
    rows = headline.found(records, seeds=3)
    for cells in (headline.MINUTES, *(each.minutes for each in rows)):
        assert f"| {' | '.join(cells)} |" in text
    assert rows[0].minutes[-2:] == ("1.11", "2.15"), (
        "the least margins are those of the fastest link"
    )
    assert headline.models(records) in " ".join(text.split())
    margins = [float(each.minutes[-2]) for each in rows]
    assert (
        f"ours is {margins[0]} times as fast as the best rival. On the others it is "
        f"{min(margins[1:])} to {max(margins)}."
    ) in " ".join(text.split())


def test_how_ours_stand_to_no_wire_and_where_a_seed_is_missing(
    records: list[dict[str, Any]],
) -> None:
    text = prose("benchmarks", "README.md")
    over = [
        f"{row.ours[0] / row.infinite:.2f}" for row in headline.found(records, seeds=3) if row.ours
    ]
    assert f"ours are {', '.join(over[:-1])} and {over[-1]} times no wire" in text
    for row in headline.found(records, seeds=3):
        assert f"{row.infinite:,.0f}" in text
        assert f"{headline.alone(records, row.link):.3f}" in text
    with pytest.raises(SystemExit, match=r"the curve of DDP has \d seeds, not 9"):
        headline.found(records, seeds=9)


def test_a_step_without_a_wire_is_of_the_machine_that_timed_the_link() -> None:
    def step(link: str, seconds: float, error: str | None = None) -> dict[str, Any]:
        return {
            "kind": "time",
            "name": headline.ALONE.name,
            "link": {"name": link},
            "slowest_s": seconds,
            "error": error,
        }

    slow = headline.TIMED_APART[0].name
    records = [
        step("no limits", 0.5),
        step("no limits", 0.6),
        step(slow, 0.7),
        step(slow, 0.9),
        step(slow, 9.0, "failed"),
    ]
    assert headline.alone(records, "1 Gb/s, 0 ms") == pytest.approx(0.55)
    assert headline.alone(records, slow) == pytest.approx(0.8)
    with pytest.raises(SystemExit, match="no step without a wire is known"):
        headline.alone(records[2:], "1 Gb/s, 0 ms")


def test_the_tables_of_the_study_of_local_steps() -> None:
    text = (HERE / "results" / "evidence.md").read_text().splitlines()
    rows = evidence.lines(evidence.known(evidence.FOLDER))
    assert len(rows) > 30
    assert not [row for row in rows if row not in text]


def test_the_study_of_local_steps_states_which_claims_hold() -> None:
    text = (HERE.parent / "docs" / "evidence.md").read_text().splitlines()
    rows = evidence.claims(evidence.known(evidence.FOLDER))
    assert len(rows) > 10
    assert not [claim for claim, _, holds in rows if f"| {claim} | {holds} |" not in text]


def test_what_the_page_says_of_papers_that_are_not_met() -> None:
    text = prose("docs", "evidence.md")
    losses = evidence.told(evidence.known(evidence.FOLDER))
    dense, one, *more = evidence.means(
        losses, (evidence.PARALLEL, *map(evidence.many, evidence.WORLDS))
    )
    two, four, eight = (100 * (each / one - 1) for each in more)
    assert f"ends {100 * (1 - one / dense):.1f} % below plain AdamW" in text
    assert f"2, 4 and 8 cost {two:.1f}, {four:.1f} and {eight:.0f} %" in text
    assert f"**8 replicas stand {100 * (more[-1] / dense - 1):.1f} % above" in text
    past = [
        apart > 1.12 * plain
        for plain, apart in evidence.by_seed(losses, (evidence.PARALLEL, evidence.many(8)))
    ]
    assert (sum(past), len(past)) == (2, 3)
    assert "In two seeds of three they stand past it." in text
    whole, cut = evidence.means(losses, evidence.BURSTS)
    halves = f"{100 * (cut / whole - 1):.0f} %"
    assert f"**Fragments merged by halves cost {halves}.**" in text
    assert f"In runs of some 80 rounds that costs {halves}," in prose("docs", "on", "deltas.md")
    assert f"one step late end {halves} above the burst" in prose("docs", "bench.md")
    rates = evidence.means(losses, [evidence.replicas(8, rate) for rate in evidence.RATES])
    assert f"is least at {evidence.between(*rates):.2f}" in text
    at_once, kept = evidence.means(losses, ("3 fragments, alpha 0", "3 fragments"))
    assert f"ended {100 * (1 - at_once / kept):.0f} % lower" in prose(
        "src", "thinwire", "strategy", "recipes", "local_steps.py"
    )
    bare = [
        100 * (lost / fed - 1)
        for lost, fed in evidence.by_seed(losses, ("2 bits, H=10", "2 bits, H=10, feedback"))
    ]
    assert (
        f"{bare[0]:.1f} % higher in one seed, {-bare[1]:.1f} and {-bare[2]:.1f} % lower in "
        "the others"
    ) in text
    dense, near, larger, far = evidence.means(
        losses, (evidence.PARALLEL, "4 bits", *evidence.CONFIRMED)
    )
    assert (
        f"falls from {100 * (near / dense - 1):.1f} to {100 * (far / larger - 1):.1f} % at "
        "2.0 M parameters"
    ) in text
