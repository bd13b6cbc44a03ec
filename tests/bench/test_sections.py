"""The pages: every name and error is there, words of records stay words, and the HTML holds
together."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from tests.bench.pages import ENVIRONMENT, LINKS, TINY, Balanced, Record, a_curve, a_time, plausible
from tests.cli.test_compare import a_run, kept
from thinwire.bench.report import bench_page, runs_page, summary, write
from thinwire.cli.report import finished

NASTY = "<script>alert('1')</script> & \"quotes\" $x$ -- #000001"


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return plausible()


@pytest.fixture(scope="module")
def page(records: list[Record]) -> str:
    return bench_page(records)


def test_every_name_and_error_is_told(records: list[Record], page: str) -> None:
    text, cells = Balanced(page).text, {row["name"] for row in summary(records)}
    for record in records:
        if "name" in record:
            assert record["name"] in text
            assert record["name"] in cells
        if record.get("error"):
            assert record["error"] in text
            assert any(
                record["error"] in error for row in summary(records) for error in row["errors"]
            )


def test_the_html_holds_together(page: str) -> None:
    parsed = Balanced(page)
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    known = set(ids)
    assert all(
        set((attrs.get(key) or "").split()) <= known
        for _, attrs in parsed.tags
        for key in ("aria-labelledby", "aria-describedby")
    )
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= known
    pictures = [attrs for attrs in parsed.all("svg") if attrs.get("role") == "img"]
    assert len(pictures) == len(LINKS) + 1 + len(LINKS) + 2  # seconds, bytes, parts, proof
    assert all(attrs["aria-labelledby"] for attrs in pictures)
    assert all("aria-hidden" in attrs for attrs in parsed.all("svg") if attrs not in pictures)
    assert all(attrs.get("scope") in ("row", "col") for attrs in parsed.all("th"))
    assert all("aria-sort" in attrs for attrs in parsed.all("th") if attrs["scope"] == "col")
    assert len(parsed.all("thead")) == len(parsed.all("table")) == len(parsed.all("caption"))


def test_no_stand_in_colour_is_left(page: str) -> None:
    assert re.findall(r'style="[^"]*#0000[0-9a-f]{2}', page) == []
    told = set(re.findall(r"var\((--[\w-]+)\)", page))
    assert told <= set(re.findall(r"(--[\w-]+):", page))


@pytest.mark.parametrize(
    "said", [NASTY, "]]>--><!--", "名前 🚀", "nul\x00 and half\ud800", "x" * 300]
)
def test_words_from_records_stay_words(said: str, tmp_path: Path) -> None:
    records = [
        ENVIRONMENT | {key: said for key in ENVIRONMENT if key != "kind"},
        *TINY,
        a_curve(said, [5.0, 1.0], said, settings={said: said}),
        a_time(said, [1.0], said, said, settings={said: said}),
        a_time(said, [], said, said, error=said),
        {
            "kind": "whole",
            "name": said,
            "link": {"name": said},
            "seed": said,
            "points": [[1, 1.0, 3.0]],
            "error": said,
        },
    ]
    page = bench_page(records)
    parsed = Balanced(page)
    assert len(parsed.all("script")) == page.count("<script") == 1
    assert re.findall(r'="[^"]*"quotes', page) == []
    assert parsed.text.count(re.sub("[\x00\ud800]", "\ufffd", said)) > 10
    assert write(page, tmp_path / "page.html").read_text(encoding="utf-8") == page


@pytest.mark.parametrize(
    "records",
    [
        [a_curve("alone", [3.0, 2.0], "ddp")],
        [a_curve("alone", [3.0, 2.0])],
        [a_time("alone", [1.0])],
        [a_time("alone", [], error="it broke")],
        [a_curve("alone", [], "ddp", error="it broke"), a_time("alone", [1e-9, 1e9], "ddp")],
        [
            a_curve("one", [2.0], "ddp"),
            a_curve("flat", [2.0, 2.0]),
            a_time("one", [1.0], "ddp"),
            a_time("flat", [1e5], kernel_bytes=1e15),
        ],
        [*TINY, a_curve("nan", [4.0, math.nan, 3.0]), a_time("nan", [math.inf])],
        [
            *TINY,
            a_curve("zero", [4.0, 1.0], bytes_per_step=0.0),
            a_time("zero", [1.0], kernel_bytes=0, metered_bytes=0),
        ],
    ],
)
def test_odd_records_give_a_page(records: list[Record]) -> None:
    text = Balanced(bench_page(records)).text
    assert all(
        record["name"] in text and (not record["error"] or record["error"] in text)
        for record in records
    )
    assert len(summary(records)) == len({record["name"] for record in records})


def test_a_page_of_runs(tmp_path: Path) -> None:
    runs = [
        kept(tmp_path / "one", a_run()),
        kept(tmp_path / "two", a_run("diloco,period=20", 2.1, 8e3, seed=1)),
    ]
    page = runs_page(*finished([Path(each) for each in runs]))
    parsed = Balanced(page)
    assert all(
        word in parsed.text
        for word in (
            "dense",
            "diloco,period=20",
            "+5.00",
            "20.0",
            "3.1500",
            "The runs differ in seed (0, 1)",
        )
    )
    assert len([attrs for attrs in parsed.all("svg") if attrs.get("role") == "img"]) == 3
    assert "//" not in re.sub(r"<script>.*?</script>", "", page, flags=re.S)


def test_nothing_comes_from_outside(page: str) -> None:
    assert re.findall(r"(?:https?:)?//[\w.-]+\.\w+|@import|url\((?!#)", page) == []
    assert all(
        not attrs.get("src") and (attrs.get("href") or "#").startswith("#")
        for _, attrs in Balanced(page).tags
    )


def test_the_same_records_give_the_same_page(records: list[Record], page: str) -> None:
    assert bench_page(records) == page
