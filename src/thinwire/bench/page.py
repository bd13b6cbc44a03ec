"""Write the parts of a bench page: one HTML file that needs neither a server nor a network.

`sections.py` has the texts of the two kinds of page. Words that come from records go through
`escape`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from thinwire.bench.looks import clean, escape, sig

if TYPE_CHECKING:
    pass

STAR = (
    '<span class="star" aria-hidden="true">★</span><span class="unseen">fastest on this link: '
    "</span>"
)
NONE = '<span class="none">–</span>'


@dataclass(frozen=True)
class Cell:
    """Hold a cell of a table: one text, or one for each target that the reader can choose.

    A table sorts by `values`.
    """

    texts: tuple[str, ...]
    values: tuple[float | str | None, ...]
    attributes: str = ""

    @staticmethod
    def number(value: float | None, text: str = "") -> Cell:
        """Return a cell of a number, as `text` or, without one, as `sig` writes it."""
        return Cell((NONE if value is None else escape(text) or sig(value),), (value,))

    @staticmethod
    def words(value: object) -> Cell:
        """Return a cell of words, escaped."""
        return Cell((escape(value),), (clean(value),))


@dataclass(frozen=True)
class Head:
    """Hold the head of a column.

    unit: shown below; about: shown where the pointer rests; large: the first sort puts the largest
    first.
    """

    words: str
    unit: str = ""
    about: str = ""
    number: bool = True
    large: bool = False


@dataclass(frozen=True)
class Row:
    """Hold a row; its first cell names it. attributes: HTML's."""

    cells: Sequence[Cell]
    attributes: str = ""


@dataclass
class Choice:
    """Hold a <select>: (value, words) pairs."""

    name: str
    label: str
    options: list[tuple[str, str]] = field(default_factory=list)
    chosen: str = ""

    def html(self) -> str:
        options = (
            (
                "<option "
                f'value="{escape(value)}"{" selected" if value == self.chosen else ""}>'
                f"{escape(words)}</option>"
            )
            for value, words in self.options
        )
        return (
            f"<label>{escape(self.label)} <select "
            f'id="{self.name}">{"".join(options)}</select></label>'
        )


def each(texts: Sequence[str], chosen: int, tag: str = "span") -> str:
    """Write one text for each target, and show the chosen one.

    Example:
        >>> each(["4 s", "5 s"], 1)
        '<span data-t="0" hidden>4 s</span><span data-t="1">5 s</span>'
    """
    if len(texts) == 1:
        return texts[0]
    return "".join(
        f'<{tag} data-t="{at}"{"" if at == chosen else " hidden"}>{text}</{tag}>'
        for at, text in enumerate(texts)
    )


def table(caption: str, heads: Sequence[Head], rows: Sequence[Row], chosen: int = 0) -> str:
    """Write a table that sorts, in a box of its own that scrolls."""
    # A button in each head sorts by its column.
    top = []
    for head in heads:
        unit = f'<span class="unit">{escape(head.unit)}</span>' if head.unit else ""
        about = f' title="{escape(head.about)}"' if head.about else ""
        top.append(
            '<th scope="col" '
            f'aria-sort="none"{" class=n" if head.number else ""}'
            f"{' data-large' if head.large else ''}>"
            f'<button type="button"{about}><span '
            f'class="by">{escape(head.words)}</span>{unit}</button></th>'
        )
    body = []
    for row in rows:
        cells = []
        # data-v holds the number to sort by, since the text is rounded; a cell may have one for
        # each target.
        for at, (head, cell) in enumerate(zip(heads, row.cells, strict=True)):
            values = "".join(
                f' data-v{n if len(cell.values) > 1 else ""}="{escape(value)}"'
                for n, value in enumerate(cell.values)
                if value is not None
            )
            tag = 'th scope="row"' if at == 0 else "td"
            css = " class=n" if head.number else ""
            cells.append(
                f"<{tag}{css}{values}{cell.attributes}>{each(cell.texts, chosen)}</{tag[:2]}>"
            )
        body.append(f"<tr{row.attributes}>{''.join(cells)}</tr>")
    return (
        '<div class="scroll" tabindex="0" role="region" '
        f'aria-label="{escape(caption)}"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{''.join(top)}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def figure(svg: str, words: str, below: str = "", attributes: str = "") -> str:
    """Write a picture under its name."""
    below = f'<p class="below">{below}</p>' if below else ""
    return (
        f"<figure{attributes}><figcaption>{escape(words)}</figcaption>"
        '<div class="scroll" tabindex="0" role="region" '
        f'aria-label="{escape(words)}">{svg}</div>{below}</figure>'
    )


def legend(entries: Sequence[tuple[int, str, str]]) -> str:
    """Write buttons that single lines out: each contestant's number, swatch and name."""
    items = (
        (
            f'<li><button type="button" class="pick" data-c="{number}" '
            f'aria-pressed="false">{swatch}{escape(name)}</button></li>'
        )
        for number, swatch, name in entries
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def section(title: str, *parts: str) -> str:
    """Write a section of the page, or nothing where it is empty."""
    inner = "\n".join(part for part in parts if part)
    return f"<section><h2>{escape(title)}</h2>\n{inner}\n</section>" if inner else ""


def document(title: str, *parts: str) -> str:
    """Write the whole page."""
    inner = "\n".join(part for part in parts if part)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta '
        'name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n{inner}\n</main>\n"
        '<p role="status" class="unseen" '
        f'id="status"></p>\n<script>{SCRIPT}</script>\n</body>\n</html>\n'
    )


def fixed(value: float | None, digits: int) -> Cell:
    return Cell.number(value, "" if value is None else f"{value:.{digits}f}")


def time_unit(seconds: Iterable[float]) -> tuple[float, str]:
    """Choose the unit that suits most of some times; return its number in a second and its name."""
    middle = statistics.median(list(seconds) or [0.0])
    if middle < 120:
        return 1.0, "s"
    return (1 / 60, "min") if middle < 2 * 3600 else (1 / 3600, "h")


def so_many(number: int, one: str, many: str = "") -> str:
    """Write a number of things.

    Example:
        >>> so_many(1, "rank"), so_many(2, "rank"), so_many(0, "strategy", "strategies")
        ('1 rank', '2 ranks', '0 strategies')
    """
    return f"{number} {one if number == 1 else many or one + 's'}"


CSS = """
:root {
  --paper: #ffffff; --raised: #f6f7f9; --ink: #16191d; --muted: #5d6570; --grid: #e3e6ea;
  --rule: #d3d8de; --accent: #0b5cad;
  --win: #fff4cf; --star: #8a5a00; --bad: #a3241b;
  --c0: #0072b2; --c1: #d55e00; --c2: #00876a; --c3: #b4528c; --c4: #a87400; --c5: #3a9fd6;
  --compute: #4b5f8a; --encode: #b89b2e; --exposed: #cc6677; --input: #3f9f91; --untold: #aeb4bc;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --raised: #1d2127; --ink: #e8eaed; --muted: #a2abb6; --grid: #2c323a;
    --rule: #3a414b; --accent: #7db8f5;
    --win: #3a3115; --star: #ffd45e; --bad: #ff9a8f;
    --c0: #4aa8ea; --c1: #ff8345; --c2: #2fc79c; --c3: #e59bc8; --c4: #e6b33d; --c5: #9bdcff;
    --compute: #8196c8; --encode: #d9c060; --exposed: #e58592; --input: #5fc3b4; --untold: #6b737d;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
  "Liberation Sans", Helvetica, Arial, sans-serif; }
main { max-width: 100rem; margin: 0 auto;
  padding: clamp(1rem, 3vw, 2.5rem) clamp(.8rem, 3vw, 2.5rem) 4rem; }
h1 { font-size: clamp(1.6rem, 4vw, 2.3rem); line-height: 1.15; letter-spacing: -.015em;
  margin: 0 0 .6rem; text-wrap: balance; }
h2 { font-size: 1.3rem; line-height: 1.25; letter-spacing: -.01em; margin: 3rem 0 .5rem; }
p, .verdict, .plain { max-width: 46rem; margin: .5rem 0; }
.lead { font-size: 1.05rem; } .quiet, .below { color: var(--muted); font-size: .9rem; }
.warning { border-left: 3px solid var(--bad); padding-left: .8rem; }
.verdict { padding: 0; list-style: none; } .verdict li { padding: .35rem 0;
  border-top: 1px solid var(--rule); }
.controls { position: sticky; top: 0; z-index: 4; display: flex; flex-wrap: wrap;
  gap: .4rem 1.2rem; padding: .6rem 0; font-size: .9rem;
  background: var(--paper); border-bottom: 1px solid var(--rule); margin-top: 1rem; }
.controls label { display: flex; align-items: center; gap: .5rem; max-width: 100%; }
select { font: inherit; color: inherit; background: var(--raised); border: 1px solid var(--rule);
  border-radius: .35rem;
  padding: .25rem .4rem; min-width: 0; max-width: 100%; }
[hidden] { display: none !important; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; }
.scroll { overflow-x: auto; max-width: 100%; position: relative; }
.scroll + .scroll { margin-top: 1.4rem; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: separate; border-spacing: 0; font-size: .84rem; line-height: 1.125rem;
  min-width: 100%;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); padding: .2rem 0 .6rem; position: sticky;
  left: 0; }
th, td { padding: .375rem .55rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--rule); white-space: nowrap;
  background: var(--paper); }
th { font-weight: 600; } .n { text-align: right; }
thead th { padding: 0; vertical-align: bottom; border-bottom: 2px solid var(--muted); }
thead button { all: unset; box-sizing: border-box; display: block; width: 100%;
  padding: .375rem .55rem; cursor: pointer;
  white-space: normal; min-width: 4.9rem; }
thead button:hover { color: var(--accent); }
thead button:focus-visible { outline: 2px solid var(--accent); outline-offset: -2px; }
thead .by::after { content: "\\a0↕"; color: var(--muted); opacity: .55; font-weight: 400; }
th[aria-sort=ascending] .by::after { content: "\\a0↑"; opacity: 1; color: var(--accent); }
th[aria-sort=descending] .by::after { content: "\\a0↓"; opacity: 1; color: var(--accent); }
.unit { display: block; font-weight: 400; color: var(--muted); font-size: .8rem;
  white-space: nowrap; }
tbody th, thead th:first-child { position: sticky; left: 0; z-index: 1; }
tbody th { font-weight: 500; min-width: 15rem; max-width: 19rem; white-space: normal; }
tbody tr:hover > * { background: var(--raised); }
tr.win > * { background: var(--win); } tr.win th { font-weight: 700; }
.star { color: var(--star); margin-right: .3rem; line-height: 1; }
.soft, .none { color: var(--muted); }
.chip { border: 1px solid var(--rule); border-radius: 1rem; padding: 0 .45rem; font-size: .78rem;
  display: inline-block;
  line-height: 1rem; vertical-align: top; }
.chip.ours { border-color: var(--accent); color: var(--accent); }
.error { color: var(--bad); display: block; font-weight: 400; font-size: .8rem;
  overflow-wrap: anywhere; }
.swatch { vertical-align: -.1rem; margin-right: .5rem; flex: none; } .who { display: flex; }
.who .swatch { margin-top: 2px; vertical-align: top; } .name { overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 31rem), 1fr));
  gap: 1.6rem 2.2rem; }
.figures > figure { max-width: 46rem; }
figure { margin: .6rem 0 0; min-width: 0; } figcaption { font-weight: 600; margin-bottom: .3rem; }
figure svg { display: block; width: 100%; min-width: 22rem; height: auto; }
figure svg text { font-family: inherit; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem .4rem; padding: 0;
  margin: .6rem 0 1rem; font-size: .875rem; }
.legend.parts { gap: .3rem 1.2rem; } .legend li { max-width: 100%; }
.pick { font: inherit; color: inherit; background: none; border: 1px solid var(--rule);
  border-radius: .4rem;
  padding: .15rem .6rem .15rem .4rem; cursor: pointer; text-align: left; overflow-wrap: anywhere; }
.pick[aria-pressed=true] { background: var(--raised); border-color: var(--ink); }
.block { display: inline-block; width: 1rem; height: .8rem; margin-right: .45rem;
  vertical-align: -.05rem; }
.tick { display: inline-block; width: 2px; height: 1rem; margin: 0 .6rem; background: var(--ink);
  vertical-align: -.15rem; }
.s { transition: opacity .15s; } .picked .s:not(.on) { opacity: .1; } .t.off { display: none; }
details { border-bottom: 1px solid var(--rule); } summary { cursor: pointer; padding: .5rem 0;
  overflow-wrap: anywhere; }
pre { overflow-x: auto; background: var(--raised); padding: .8rem 1rem; border-radius: .4rem;
  font-size: .8rem; line-height: 1.45; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono",
  monospace; }
@media (max-width: 40rem) { tbody th { min-width: 8.5rem; max-width: 8.5rem; }
  th, td { padding: .375rem .5rem; }
  .who { display: block; } }
@media print { .controls { position: static; } .scroll { overflow: visible; } }
@media (prefers-reduced-motion: reduce) { .s { transition: none; } }
"""

SCRIPT = """
(() => {
  const all = (what, where = document) => [...where.querySelectorAll(what)];
  const find = id => document.getElementById(id);
  const target = find('target'), link = find('link'), status = find('status');
  const chosen = () => target ? target.value : '0';
  const value = (row, at) => {
    const values = row.cells[at].dataset;
    return values['v' + chosen()] ?? values.v;
  };
  const compare = (a, b) =>
    isNaN(a) || isNaN(b) ? a.localeCompare(b, 'en', {numeric: true}) : a - b;

  function sort(head) {
    const body = head.closest('table').tBodies[0], at = head.cellIndex;
    const down = head.ariaSort === 'descending' ? -1 : 1;
    const rows = [...body.rows].map(row => [value(row, at), row]);
    rows.sort(([a], [b]) => a === undefined || b === undefined
      ? (a === undefined) - (b === undefined) : down * compare(a, b));
    body.append(...rows.map(([, row]) => row));
  }
  for (const button of all('thead button')) button.addEventListener('click', () => {
    const head = button.closest('th'), first = 'large' in head.dataset ? 'descending' : 'ascending';
    const turned = head.ariaSort === 'ascending' ? 'descending' : 'ascending';
    const next = head.ariaSort === 'none' ? first : turned;
    for (const other of all('th[aria-sort]', head.closest('tr')))
      other.ariaSort = other === head ? next : 'none';
    sort(head);
    status.textContent = `sorted by ${button.firstChild.textContent}, ${next}`;
  });

  function show() {
    const now = chosen();
    for (const part of all('[data-t]')) part.hidden = part.dataset.t !== now;
    for (const mark of all('.t')) mark.classList.toggle('off', !mark.classList.contains('t' + now));
    for (const row of all('tr[data-wins]'))
      row.classList.toggle('win', row.dataset.wins.split(' ').includes(now));
    for (const head of all('th[aria-sort=ascending], th[aria-sort=descending]')) sort(head);
    for (const part of all('[data-link]'))
      part.hidden = link && link.value !== '' && part.dataset.link !== link.value;
  }
  for (const choice of [target, link]) if (choice) choice.addEventListener('change', show);

  for (const pick of all('.pick')) pick.addEventListener('click', () => {
    const now = pick.getAttribute('aria-pressed') !== 'true';
    for (const same of all('.pick'))
      if (same.dataset.c === pick.dataset.c) same.setAttribute('aria-pressed', now);
    for (const part of all('.s.c' + pick.dataset.c)) part.classList.toggle('on', now);
    document.body.classList.toggle('picked', all('.pick[aria-pressed=true]').length > 0);
  });
  for (const part of all('.controls')) part.hidden = false;
  show();
})();
"""
