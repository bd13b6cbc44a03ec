"""The table and the choices of a page: who is first, in which order, and what a reader may
choose."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.bench.pages import TINY, Record, a_curve, a_time
from thinwire.bench.comparison import Comparison
from thinwire.bench.report import bench_page, summary, write
from thinwire.bench.results import sorted_out

CHROMIUM = shutil.which("chromium")


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
choose('target', '3');
told.last = [sort('time to target'), names(), [...document.querySelectorAll('tr.win')].length];
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


def page_of(records: list[Record]) -> Comparison:
    return Comparison(sorted_out(records), summary(records))


def test_the_verdict_names_who_is_first_and_by_how_much() -> None:
    verdict = page_of(TINY).verdict()
    assert "ours is first at 2.000 nats, in 16.0 s, 5.00 times as fast as dense" in verdict
    assert "dense is first at 1.000 nats, in 100 s" in verdict, "ours never is there"
    alone = page_of([a_curve("ours", [3.0, 2.0]), a_time("ours", [1.0])])
    assert alone.verdict() == '<p class="quiet">No dense baseline, so no target loss.</p>'
    nobody = page_of([TINY[0], a_time("dense", [], "ddp", error="lost")])
    assert "nobody reaches 2.000 nats" in nobody.verdict()


def test_columns_have_a_value_for_each_target() -> None:
    page = page_of(TINY)
    ours = next(row for row in page.rows if row["name"] == "ours")
    _, time = page.time_column()
    # 0.4 s a step; 4.1 nats at step 20, 2.5 at 30, 2 at 40, and 1.6 at the end
    assert time(ours).values == (pytest.approx(8.25), pytest.approx(10.75), pytest.approx(16), None)
    assert time(ours).texts[3] == '<span class="soft">not reached</span>'
    assert "fastest on this link: " in time(ours).texts[2]
    _, speedup = page.speedup_column("×")
    assert speedup(ours).values == (
        pytest.approx(40 / 8.25),
        pytest.approx(60 / 10.75),
        pytest.approx(5),
        None,
    )
    head, nbytes = page.bytes_column()
    assert head.unit == "MB, by a rank"
    assert nbytes(ours).values[2] == pytest.approx(450 * 40)


def test_choices_are_of_what_there_is_to_choose() -> None:
    page = page_of(TINY)
    assert 'id="target"' in page.controls()
    assert 'id="link"' not in page.controls(), "there is one link"
    assert page.attributes("slow") == ""
    two = page_of([*TINY, a_time("ours", [9.0], link="other")])
    assert 'id="link"' in two.controls()
    assert two.attributes("other") == ' data-link="1"'
    assert two.attributes(None) == ""
    assert page_of([a_time("ours", [1.0])]).controls() == ""


def test_the_baseline_looks_like_no_other() -> None:
    page = page_of(TINY)
    assert page.looks["dense"].baseline
    assert not page.looks["ours"].rival
    assert [each.number for each in page.looks.values()] == [0, 1]
