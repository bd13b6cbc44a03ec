"""The page of a bench: its figures by hand, nothing dropped, nothing from outside, and HTML that
holds together."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_compare import a_run, kept
from thinwire.bench.looks import Look
from thinwire.bench.records import for_page
from thinwire.bench.report import bench_page, runs_page, summary, write
from thinwire.cli.report import finished
from thinwire.errors import ConfigError

Record = dict[str, Any]
VOID = {"meta", "br", "hr", "img", "input", "link"}
NASTY = "<script>alert('1')</script> & \"quotes\" $x$ -- #000001"
CHROMIUM = shutil.which("chromium")

LINKS: list[Record] = [
    {"name": "1 Gb/s, 1 ms", "rate": 1e9, "rtt": 0.001, "loss": 0.0, "congestion": "cubic"},
    {"name": "100 Mb/s, 50 ms", "rate": 1e8, "rtt": 0.05, "loss": 0.0, "congestion": "cubic"},
    {
        "name": "20 Mb/s, 150 ms, 1 % lost",
        "rate": 2e7,
        "rtt": 0.15,
        "loss": 0.01,
        "congestion": "bbr",
    },
]
ENVIRONMENT: Record = {
    "kind": "environment",
    "thinwire": "0.1.0",
    "torch": "2.9.1",
    "python": "3.11.9",
    "cpu": "AMD EPYC 7B13",
    "cores": 2,
    "kernel": "6.1.0-37-amd64",
    "date": "2026-11-25",
    "command": "thinwire bench --links all --seeds 3 --out bench.jsonl",
}
# name, contestant, settings, share of dense bytes, how much the loss lags, compute seconds, seeds,
# whether it tells its parts apart
CONTESTANTS: list[tuple[str, str, Record, float, float, float, int, bool]] = [
    ("DDP fp32", "ddp", {"hook": "none"}, 1.0, 0.0, 0.11, 3, False),
    ("DDP fp16", "ddp", {"hook": "fp16"}, 0.5, 0.001, 0.113, 3, False),
    (
        "DDP PowerSGD r=4",
        "ddp",
        {"hook": "powersgd", "rank": 4, "start": 100},
        0.06,
        0.05,
        0.13,
        1,
        False,
    ),
    (
        "DiLoCo H=30, 4 bits",
        "thinwire",
        {"strategy": "[what]\nname = 'uniform'\nbits = 4\n"},
        0.0042,
        0.03,
        0.112,
        3,
        True,
    ),
    (
        "every step, 8 bits",
        "thinwire",
        {"strategy": "what = 'uniform 8'"},
        0.25,
        0.002,
        0.12,
        3,
        True,
    ),
    (
        "top 1 %, error feedback",
        "thinwire",
        {"strategy": "what = 'topk'", "attach": {"warm": 50}},
        0.02,
        0.04,
        0.128,
        3,
        True,
    ),
    ("hivemind-like averaging", "averaging", {"every": 50}, 0.02, 0.12, 0.125, 1, False),
    ("OpenDiLoCo H=50", "opendiloco", {"period": 50}, 0.02, 0.045, 0.115, 3, False),
    (
        "too coarse: never there",
        "thinwire",
        {"strategy": "what = 'uniform 2'"},
        0.06,
        0.9,
        0.115,
        1,
        True,
    ),
]


def plausible(parameters: int = 12_300_000, steps: int = 2400, timed: int = 60) -> list[Record]:
    """A bench as it may come out: three links, nine contestants, two that fail."""
    draw = random.Random(7)
    out: list[Record] = [ENVIRONMENT]
    world, tokens = 4, 4096
    dense = 4 * parameters * 2 * (world - 1) / world
    for name, contestant, settings, share, lag, compute, seeds, splits in CONTESTANTS:
        same = {
            "name": name,
            "contestant": contestant,
            "settings": settings,
            "parameters": parameters,
            "error": None,
        }
        for seed in range(seeds):
            wobble = draw.gauss(0, 0.006)
            told = [
                (at, 2.9 + lag + wobble + 7 * math.exp(-((at / 90) ** 0.5)) + draw.gauss(0, 0.004))
                for at in range(60, steps + 1, 60)
            ]
            curve = {
                "kind": "curve",
                "seed": seed,
                "tokens_per_step": tokens,
                "steps": steps,
                "validation": told,
            }
            out.append(same | curve | {"bytes_per_step": dense * share})
        for link in LINKS:
            for round_ in range(2):
                wire = share * dense * 8 / link["rate"] * (1 + 20 * link["loss"]) + (
                    6 * link["rtt"] if share > 0.01 else 0
                )
                step_s = [
                    compute * draw.uniform(0.96, 1.1) + wire * draw.uniform(0.9, 1.2)
                    for _ in range(timed)
                ]
                mean = sum(step_s) / timed
                known = {
                    "encode_s": 0.006,
                    "exposed_s": mean - compute - 0.008,
                    "input_s": 0.002,
                    "compute_s": compute,
                }
                parts = known if splits else dict.fromkeys(known) | {"input_s": 0.002}
                out.append(
                    same
                    | {
                        "kind": "time",
                        "link": link,
                        "world": world,
                        "round": round_,
                        "step_s": step_s,
                        **parts,
                        "tokens_per_s": tokens / mean,
                    }
                    | {
                        "metered_bytes": share * dense if splits else None,
                        "kernel_bytes": share * dense * 1.04,
                        "peak_bytes": 6.1e8 + share * 1e8,
                    }
                    | {"max_late_ms": draw.uniform(0.1, 2)}
                )
    broken = {
        "name": "SparseLoCo",
        "contestant": "sparseloco",
        "settings": {"k": 64},
        "parameters": None,
    }
    out.append(
        broken
        | {
            "kind": "curve",
            "seed": 0,
            "validation": [],
            "error": "ImportError: no module named 'sparseloco_kernels'",
        }
    )
    out.append(
        broken
        | {
            "kind": "time",
            "link": LINKS[1],
            "step_s": [],
            "error": "rank 2 was killed: out of memory (4.1 GB asked, 3.8 GB free)",
        }
    )
    for link in LINKS[1:]:
        row = next(
            r
            for r in summary(out)
            if r["link"] == link["name"] and r["name"] == "DiLoCo H=30, 4 bits"
        )
        points = [
            (at, at * row["step_mean_s"] * 1.03, 2.93 + 7 * math.exp(-((at / 90) ** 0.5)))
            for at in range(120, 1900, 120)
        ]
        whole = {
            "kind": "whole",
            "name": row["name"],
            "link": link,
            "seed": 0,
            "points": points,
            "target": row["target_nats"],
        }
        out.append(
            whole
            | {"predicted_s": row["time_to_target_s"], "measured_s": row["time_to_target_s"] * 1.03}
        )
    return out


def a_curve(
    name: str, losses: list[float], contestant: str = "thinwire", seed: int = 0, **more: Any
) -> Record:
    """Validated every 10 steps from the 10th."""
    told = [[10 * at, nats] for at, nats in enumerate(losses, start=1)]
    same = {
        "kind": "curve",
        "name": name,
        "contestant": contestant,
        "settings": {},
        "seed": seed,
        "parameters": 1000,
        "validation": told,
    }
    return (
        same
        | {"tokens_per_step": 64, "steps": 10 * len(losses), "bytes_per_step": None, "error": None}
        | more
    )


def a_time(
    name: str, step_s: list[float], contestant: str = "thinwire", link: str = "slow", **more: Any
) -> Record:
    same: Record = {
        "kind": "time",
        "name": name,
        "contestant": contestant,
        "settings": {},
        "link": {"name": link, "rate": 1e6, "rtt": 0.1},
    }
    same |= {
        "parameters": 1000,
        "world": 4,
        "round": 0,
        "step_s": step_s,
        "metered_bytes": None,
        "kernel_bytes": 6000.0,
    }
    return (
        same
        | {
            "tokens_per_s": 64 / (sum(step_s) / len(step_s)) if step_s else None,
            "peak_bytes": 1e8,
            "error": None,
        }
        | more
    )


TINY = [
    a_curve("dense", [5.0, 4.0, 3.0, 2.0, 1.0], "ddp"),
    a_time("dense", [2.0, 2.0], "ddp"),
    a_curve("ours", [5.0, 4.0, 2.0, 2.0, 1.5]),
    a_curve("ours", [5.0, 4.2, 3.0, 2.0, 1.7], seed=1),
    a_time("ours", [1.0], kernel_bytes=600.0),
    a_time("ours", [0.2, 0.2, 0.2], kernel_bytes=400.0, round=1),
]


class Balanced(HTMLParser):
    """What is in a page, and whether every tag that opens is closed, in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({key for key, _ in attrs}) == len(attrs), (
            f"<{tag}> says an attribute twice: {attrs}"
        )
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another one"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for each, attrs in self.tags if each == tag]


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return plausible()


@pytest.fixture(scope="module")
def page(records: list[Record]) -> str:
    return bench_page(records)


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


def test_nothing_comes_from_outside(page: str) -> None:
    assert re.findall(r"(?:https?:)?//[\w.-]+\.\w+|@import|url\((?!#)", page) == []
    assert all(
        not attrs.get("src") and (attrs.get("href") or "#").startswith("#")
        for _, attrs in Balanced(page).tags
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


def test_the_same_records_give_the_same_page(records: list[Record], page: str) -> None:
    assert bench_page(records) == page


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


def test_links_stand_the_fastest_first() -> None:
    names = ("10 Mb/s", "1 Gb/s, far", "1 Gb/s", "no limits")
    wires = ((1e7, 0.0), (1e9, 0.05), (1e9, 0.0), (None, 0.0))
    timed = [
        a_time("dense", [1.0], "ddp") | {"link": {"name": name, "rate": rate, "rtt": rtt}}
        for name, (rate, rtt) in zip(names, wires, strict=True)
    ]
    records = [TINY[0], *timed]
    assert [row["link"] for row in summary(records)] == [
        "no limits",
        "1 Gb/s",
        "1 Gb/s, far",
        "10 Mb/s",
    ]
    page = bench_page(records)
    told = {
        tag: [re.sub("<.*?>", "", each) for each in re.findall(f"<{tag}[ >].*?</{tag}>", page)]
        for tag in ("option", "figcaption")
    }
    assert told["option"][-4:] == ["no limits", "1 Gb/s", "1 Gb/s, far", "10 Mb/s"]
    assert told["figcaption"][:4] == ["no limits", "1 Gb/s", "1 Gb/s, far", "10 Mb/s"]


def test_a_whole_run_that_never_is_at_the_target_is_told() -> None:
    never = {"kind": "whole", "name": "dense", "link": LINKS[0], "seed": 0, "error": None}
    never |= {"validation": [[10, 5.0], [50, 4.5]], "points": [[10, 1.0, 5.0], [50, 5.0, 4.5]]}
    small = a_time("dense", [0.1], "ddp", kind="small")
    records = for_page([*TINY, small, never])
    assert (records[-1]["measured_s"], records[-1]["same_losses"]) == (None, False)
    assert records[-1]["predicted_s"] == pytest.approx(4.0)
    assert "not reached" in Balanced(bench_page(records)).text


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


def test_contestants_look_different() -> None:
    looks = [Look(at, rival=False).swatch() for at in range(42)]
    assert len(set(looks)) == 42
    assert all("dasharray" in Look(at, rival=True).swatch() for at in range(42))


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


CHECK = """<script>
const shown = () => [...document.querySelector('tbody').rows].filter(row => !row.hidden);
const names = () => shown().map(row => row.cells[0].querySelector('.name').textContent);
const heads = [...document.querySelector('thead').querySelectorAll('th')], told = {};
const sort = word => {
  const head = heads.find(each => each.textContent.startsWith(word));
  head.querySelector('button').click();
  return head.ariaSort;
};
const choose = (id, value) => {
  const it = document.getElementById(id);
  it.value = value;
  it.dispatchEvent(new Event('change'));
};
told.up = [sort('time to target'), names()]; told.down = [sort('time to target'), names()];
told.fewer = [sort('fewer bytes'), names()]; told.words = [sort('contestant'), names()];
choose('target', '3'); const winners = () => [...document.querySelectorAll('tr.win')].length;
told.last = [sort('time to target'), names(), winners()];
choose('link', '1'); told.link = names();
const pick = document.querySelector('.pick');
const lit = () => document.querySelectorAll('.picked .s.on').length;
pick.click(); told.picked = [lit(), pick.getAttribute('aria-pressed')];
pick.click(); told.picked.push(lit());
document.body.innerHTML = '<pre id="told"></pre>';
document.getElementById('told').textContent = JSON.stringify(told);
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
def test_a_browser_sorts_and_chooses(tmp_path: Path) -> None:
    records = [
        *TINY,
        a_curve("slow", [5.0, 5.0, 5.0, 5.0, 1.0]),
        a_time("slow", [1.0], kernel_bytes=10.0),
        a_curve("never", [5.0] * 5),
        a_time("never", [1.0]),
        a_time("ours", [9.0], link="other"),
    ]
    place = write(bench_page(records).replace("</body>", CHECK + "</body>"), tmp_path / "page.html")
    flags = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
    )
    command = [
        str(CHROMIUM),
        *flags,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        place.as_uri(),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'<pre id="told">(.*?)</pre>', dom, re.S)
    assert found, dom[-2000:]
    told = json.loads(found[1].replace("&gt;", ">").replace("&amp;", "&"))
    assert told["up"] == ["ascending", ["ours", "slow", "dense", "ours", "never"]]
    assert told["down"] == [
        "descending",
        ["ours", "dense", "slow", "ours", "never"],
    ]  # what never gets there stays last
    assert told["fewer"][0] == "descending"
    assert told["fewer"][1][:2] == ["slow", "ours"]
    assert told["words"] == ["ascending", ["dense", "never", "ours", "ours", "slow"]]
    assert told["last"][0] == "ascending"
    assert (told["last"][1][:2], told["last"][2]) == (
        ["slow", "dense"],
        1,
    )  # at the last target ours never gets there
    assert told["link"] == ["ours"]
    assert (told["picked"][0] >= 2, told["picked"][1:]) == (
        True,
        ["true", 0],
    )  # a line by seconds and one by bytes
