"""What the page of a bench and the page of training runs say, out of the parts in `page.py`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from thinwire.bench.figures import Line, Look, bars, clean, curves, escape, parts_legend, sig
from thinwire.bench.notes import cautions, details, failures, measures, opening, reproduce
from thinwire.bench.page import (
    NONE,
    STAR,
    Cell,
    Choice,
    Head,
    Row,
    document,
    each,
    figure,
    fixed,
    legend,
    section,
    so_many,
    table,
    time_unit,
)
from thinwire.bench.results import Bench


def bench_sections(bench: Bench, rows: Sequence[Mapping[str, Any]]) -> str:
    """The page of a bench: `rows` as `thinwire.bench.report.summary` tells them."""
    told = Told(bench, rows)
    ours = sum(each == "thinwire" for each in bench.contestants.values())
    title = (
        f"thinwire bench: {so_many(ours, 'strategy', 'strategies')} and "
        f"{so_many(len(bench.contestants) - ours, 'rival')}"
    )
    columns = (
        _name_column(told),
        (
            Head("link", number=False),
            lambda row: Cell.words("–" if row["link"] is None else row["link"]),
        ),
        (Head("kind", number=False), _kind),
        told.time_column(),
        told.speedup_column(f"× of {bench.baseline}" if bench.baseline else "×"),
        (Head("step, median", "s [p10–p90]"), _middle),
        (Head("step, mean", "s"), lambda row: Cell.number(row["step_mean_s"])),
        (Head("tokens/s", "all ranks", large=True), lambda row: Cell.number(row["tokens_per_s"])),
        (
            Head("fewer bytes", "× of dense fp32", large=True),
            lambda row: Cell.number(row["fewer_bytes"]),
        ),
        (Head("final loss", "nats a token ± sd"), _final),
        (Head("gap to dense", "%"), _gap),
        told.bytes_column(),
        _memory_column(rows),
    )
    return document(
        title,
        f"<h1>{escape(title)}</h1>",
        opening(bench),
        cautions(bench),
        told.controls(),
        section(
            "Which wins on which link",
            told.verdict(),
            told.table("One row a link and contestant; ★ is first to the target", columns),
        ),
        section("Loss against seconds", told.legend(), told.against_seconds()),
        section("Loss against bytes", told.legend(), told.against_bytes()),
        section(
            "Where a step's time goes",
            '<p class="quiet">Parts are means of rank 0; a tick is the mean step of all ranks. '
            "What a library does not tell apart is grey.</p>",
            parts_legend(),
            told.breakdown(),
        ),
        section("Proof: whole runs against the prediction", told.proof()),
        section("Notes on the bench", measures(bench, told)),
        section("Errors", failures(bench)),
        section("Reproduce", reproduce(bench)),
    )


def runs_sections(
    bench: Bench,
    rows: Sequence[Mapping[str, Any]],
    runs: Mapping[str, Any],
    differ: Mapping[str, Sequence[Any]],
) -> str:
    """The page of training runs: `runs`, by name, as their run.json has them; `differ`: what is not
    alike although it should be."""
    told = Told(bench, rows)
    first = str(bench.baseline)
    title = f"thinwire: {so_many(len(runs), 'training run')}"
    result = {name: run["result"] for name, run in runs.items()}
    scale, unit = time_unit([each["train_s"] for each in result.values()])

    def share(part: str) -> Callable[[Mapping[str, Any]], Cell]:
        return lambda row: Cell.number(
            result[row["name"]]["time_shares"][part],
            f"{result[row['name']]['time_shares'][part]:.1%}"[:-1],
        )

    columns = (
        _name_column(told),
        (Head("final loss", "nats a token"), _final),
        (Head("gap to the first", "%"), _gap),
        told.time_column(),
        told.speedup_column("× of the first"),
        (
            Head("bits a byte"),
            lambda row: fixed(result[row["name"]]["validation_bits_per_byte"], 4),
        ),
        (
            Head("sent by a rank", "MB"),
            lambda row: Cell.number(statistics.fmean(result[row["name"]]["sent_bytes"]) / 1e6),
        ),
        (
            Head("fewer bytes", "× of dense fp32", large=True),
            lambda row: Cell.number(row["fewer_bytes"]),
        ),
        (Head("tokens/s", "all ranks", large=True), lambda row: Cell.number(row["tokens_per_s"])),
        (Head("time", unit), lambda row: Cell.number(result[row["name"]]["train_s"] * scale)),
        told.bytes_column(),
        *(
            (Head(words, "% of time"), share(part))
            for part, words in (("compute", "compute"), ("exposed", "wire"), ("input", "input"))
        ),
    )
    run = runs[first]
    lead = (
        f"{so_many(len(runs), 'run')} of <code>thinwire train</code>: "
        f"{escape(run['config']['model'])}, {run['parameters']:,} parameters, "
        f"{so_many(run['world'], 'rank')}, {run['result']['tokens']:,} tokens of "
        f"{escape(run['config']['data'])} in "
        f"{run['result']['steps']:,} steps, {escape(run['precision'])} on {escape(run['device'])}. "
        f"The first, {escape(first)}, is what the others are held against."
    )
    warnings = "".join(
        f'<p class="warning">The runs differ in {escape(what)} '
        f"({escape(', '.join(map(str, values)))}): "
        "the strategy is not all that is compared here.</p>"
        for what, values in differ.items()
    )
    settings = (
        details(
            name,
            {
                key: run[key]
                for key in ("thinwire", "config", "objective", "precision", "device", "world")
            },
            run["strategy"],
        )
        for name, run in runs.items()
    )
    return document(
        title,
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{lead}</p>',
        warnings,
        told.controls(),
        section(
            "Which wins",
            told.verdict(),
            told.table("One row a run; ★ is first to the target", columns),
        ),
        section("Loss against seconds", told.legend(), told.against_seconds()),
        section("Loss against bytes", told.legend(), told.against_bytes()),
        section("Where a step's time goes", parts_legend(), told.breakdown()),
        section("Reproduce", *settings),
    )


Column = tuple[Head, Callable[[Mapping[str, Any]], Cell]]


class Told:
    """What both kinds of page show of a bench."""

    def __init__(self, bench: Bench, rows: Sequence[Mapping[str, Any]]) -> None:
        self.bench, self.rows = bench, rows
        ours = [
            name
            for name, whose in bench.contestants.items()
            if whose == "thinwire" and name != bench.baseline
        ]
        order = [
            *ours,
            *(name for name in bench.contestants if name not in ours and name != bench.baseline),
        ]
        self.looks = {
            name: Look(at, bench.contestants[name] != "thinwire") for at, name in enumerate(order)
        }
        if bench.baseline in bench.contestants:
            self.looks[bench.baseline] = Look(
                len(order), bench.contestants[bench.baseline] != "thinwire", baseline=True
            )
        self.targets = bench.targets
        times = [each["s"] for row in rows for each in row["targets"] if each["s"] is not None]
        self.scale, self.unit = time_unit(times)

    def attributes(self, link: str | None) -> str:
        """What the choice of a link goes by."""
        links = list(self.bench.links)
        return f' data-link="{links.index(link)}"' if link in links and len(links) > 1 else ""

    def controls(self) -> str:
        """The choices that hold for the whole page; they need JavaScript, and are shown by it."""
        choices = []
        if self.targets:
            words = [
                f"{nats:.3f} nats (dense at {at:.0%} of its steps)" for at, nats in self.targets
            ]
            if self.bench.contestants.get(self.bench.baseline or "") == "thinwire":
                words = [each.replace("dense", "the first") for each in words]
            choices.append(
                Choice(
                    "target",
                    "Target loss",
                    [(str(at), each) for at, each in enumerate(words)],
                    str(self.bench.chosen),
                )
            )
        if len(self.bench.links) > 1:
            choices.append(
                Choice(
                    "link",
                    "Link",
                    [("", "all"), *((str(at), link) for at, link in enumerate(self.bench.links))],
                )
            )
        return (
            f'<div class="controls" hidden>{"".join(choice.html() for choice in choices)}</div>'
            if choices
            else ""
        )

    def table(self, caption: str, columns: Sequence[Column]) -> str:
        """The rows under these columns."""
        rows = []
        for row in self.rows:
            wins = [str(at) for at, each in enumerate(row["targets"]) if each["winner"]]
            css = ' class="win"' if row["winner"] else ""
            told = f' data-wins="{" ".join(wins)}"' if self.targets else ""
            rows.append(
                Row(
                    [cell(row) for _, cell in columns], f"{css}{told}{self.attributes(row['link'])}"
                )
            )
        return table(caption, [head for head, _ in columns], rows, self.bench.chosen)

    def verdict(self) -> str:
        """Each link's winner, in a sentence."""
        items = []
        for link in self.bench.links:
            here = [row for row in self.rows if row["link"] == link]
            texts = []
            for at, (_, nats) in enumerate(self.targets):
                best = [row for row in here if row["targets"][at]["winner"]]
                texts.append(
                    self._sentence(best[0], at, nats) if best else f"nobody reaches {nats:.3f} nats"
                )
            if texts:
                name = f"<strong>{escape(link)}</strong>: " if len(self.bench.links) > 1 else ""
                items.append(
                    f"<li{self.attributes(link)}>{name}{each(texts, self.bench.chosen)}</li>"
                )
        return (
            f'<ul class="verdict">{"".join(items)}</ul>'
            if items
            else '<p class="quiet">No dense baseline, so no target loss.</p>'
        )

    def _sentence(self, row: Mapping[str, Any], at: int, nats: float) -> str:
        target = row["targets"][at]
        scale, unit = time_unit([target["s"]])
        against = ""
        if row["name"] != self.bench.baseline and target["speedup"]:
            against = f", {sig(target['speedup'])} times as fast as {escape(self.bench.baseline)}"
        return (
            f"{escape(row['name'])} is first at {nats:.3f} nats, in {sig(target['s'] * scale)} "
            f"{unit}{against}"
        )

    def time_column(self) -> Column:
        """When a contestant is at the target; the winner has a star."""

        def cell(row: Mapping[str, Any]) -> Cell:
            if not self.targets:
                return Cell.number(None)
            return Cell(
                tuple(self._time(row, each) for each in row["targets"]),
                tuple(each["s"] for each in row["targets"]),
            )

        return Head(
            "time to target", self.unit, "Steps to the target loss × the mean step on the link"
        ), cell

    def _time(self, row: Mapping[str, Any], target: Mapping[str, Any]) -> str:
        if target["s"] is not None:
            return f"{STAR if target['winner'] else ''}{sig(target['s'] * self.scale)}"
        return (
            '<span class="soft">not reached</span>'
            if row["final_nats"] is not None and target["steps"] is None
            else NONE
        )

    def speedup_column(self, unit: str) -> Column:
        """Against the baseline's time to the same target."""

        def cell(row: Mapping[str, Any]) -> Cell:
            values = tuple(each["speedup"] for each in row["targets"]) or (None,)
            return Cell(tuple(NONE if value is None else sig(value) for value in values), values)

        return Head("speed-up", unit, "How many times sooner at the target loss", large=True), cell

    def bytes_column(self) -> Column:
        """What a rank has sent at the target."""
        known = [each["bytes"] for row in self.rows for each in row["targets"] if each["bytes"]]
        scale, unit = (1e9, "GB") if known and statistics.median(known) >= 1e9 else (1e6, "MB")

        def cell(row: Mapping[str, Any]) -> Cell:
            values = tuple(each["bytes"] for each in row["targets"]) or (None,)
            return Cell(
                tuple(NONE if value is None else sig(value / scale) for value in values), values
            )

        return Head("sent to target", f"{unit}, by a rank"), cell

    def legend(self) -> str:
        """Of the contestants that have a curve."""
        return legend(
            [
                (look.place, look.swatch(), name)
                for name, look in self.looks.items()
                if name in self.bench.curves
            ]
        )

    def against_seconds(self) -> str:
        """A picture for each link."""
        out = []
        for link in self.bench.links:
            means = {
                row["name"]: row["step_mean_s"]
                for row in self.rows
                if row["link"] == link and row["step_mean_s"] is not None
            }
            lines = {
                name: (curve, [step * means[name] for step in curve.steps])
                for name, curve in self.bench.curves.items()
                if name in means
            }
            out.append(
                self._picture(
                    lines,
                    link,
                    "time",
                    time_unit([max(x) for _, x in lines.values()]),
                    self.attributes(link),
                )
            )
        return f'<div class="figures">{"".join(out)}</div>' if any(out) else ""

    def against_bytes(self) -> str:
        """One picture for all links."""
        lines = {}
        for name, curve in self.bench.curves.items():
            if sent := curve.bytes_at(curve.steps, self.bench.bytes_per_step(name)):
                lines[name] = curve, sent
        told = self._picture(
            lines,
            "What a rank has sent" + (", over all links" if len(self.bench.links) > 1 else ""),
            "sent",
            (1e-6, "MB sent by a rank"),
            "",
        )
        return f'<div class="figures">{told}</div>' if told else ""

    def _picture(
        self,
        curves_at: Mapping[str, Any],
        words: str,
        what: str,
        unit: tuple[float, str],
        attributes: str,
    ) -> str:
        scale, said = unit
        lines = [
            Line(self.looks[name], [each * scale for each in x], curve.mean, curve.low, curve.high)
            for name, (curve, x) in curves_at.items()
            if max(x) > 0
        ]
        if not lines:
            return ""
        names = ", ".join(name for name, (_, x) in curves_at.items() if max(x) > 0)
        told = (
            f"Validation loss against {what}: {words}",
            f"Lines of {names}. Bands: the least and the greatest of the seeds.",
        )
        label = said if what == "sent" else {"s": "seconds", "min": "minutes", "h": "hours"}[said]
        return figure(
            curves(lines, told, label, [nats for _, nats in self.targets], self.bench.chosen),
            words,
            attributes=attributes,
        )

    def breakdown(self) -> str:
        """Bars of the steps' parts, a picture for each link."""
        out = []
        for link in self.bench.links:
            here = [
                row for row in self.rows if row["link"] == link and row["step_mean_s"] is not None
            ]
            if not here:
                continue
            here.sort(key=lambda row: row["step_mean_s"])
            scale, unit = (
                (1e3, "ms")
                if statistics.median(row["step_mean_s"] for row in here) < 1
                else (1.0, "s")
            )
            told = [(row["name"], _parts(row), row["step_mean_s"]) for row in here]
            about = "; ".join(
                f"{name}: "
                + ", ".join(f"{part} {sig(s * scale)} {unit}" for part, s in parts.items())
                for name, parts, _ in told
            )
            out.append(
                figure(
                    bars(told, (f"Parts of a step: {link}", about), scale, unit),
                    link,
                    attributes=self.attributes(link),
                )
            )
        return f'<div class="figures">{"".join(out)}</div>' if out else ""

    def proof(self) -> str:
        """Whole runs: how far the prediction was off, and the loss by predicted and by measured
        seconds."""
        heads = [
            Head("contestant", number=False),
            Head("link", number=False),
            Head("seed"),
            Head("target", "nats"),
            Head("predicted", "s"),
            Head("measured", "s"),
            Head("measured to predicted", "%"),
            Head("losses as in its curve", number=False),
        ]
        rows, pictures = [], []
        for whole in self.bench.wholes:
            name, link = (
                whole["name"],
                str(whole["link"]["name"] if isinstance(whole["link"], Mapping) else whole["link"]),
            )
            predicted, measured = whole.get("predicted_s"), whole.get("measured_s")
            off = measured / predicted - 1 if measured is not None and predicted else None
            error = (
                f'<span class="error">{escape(whole["error"])}</span>' if whole.get("error") else ""
            )
            cells = [
                Cell((f"{escape(name)}{error}",), (clean(name),)),
                Cell.words(link),
                Cell.words(whole.get("seed", "–")),
                fixed(whole.get("target"), 3),
                Cell.number(predicted),
                Cell.words("not reached")
                if measured is None and predicted
                else Cell.number(measured),
                Cell.number(off, f"{off or 0:+.1%}"[:-1]),
                Cell.words(
                    {True: "yes, bit for bit", False: "no"}.get(whole.get("same_losses", ""), "–")
                ),
            ]
            rows.append(Row(cells))
            pictures.append(self._proof_picture(whole, name, link))
        if not rows:
            return ""
        about = (
            "<p>A whole run over the link, its seconds counted from its first step. The line is "
            "the curve, each step as long as the mean "
            "of some steps timed apart: the way of all that stands above. The points were "
            "measured.</p>"
        )
        return (
            f"{about}{table('Whole runs', heads, rows)}<div "
            f'class="figures">{"".join(pictures)}</div>'
        )

    def _proof_picture(self, whole: Mapping[str, Any], name: str, link: str) -> str:
        points = [
            (s, nats)
            for _, s, nats in whole.get("points") or []
            if nats is not None and math.isfinite(s) and math.isfinite(nats)
        ]
        if not points or max(s for s, _ in points) <= 0:
            return ""
        look = self.looks.get(name, Look(0, rival=False))
        scale, unit = time_unit([points[-1][0]])
        lines = [
            Line(look, [s * scale for s, _ in points], [nats for _, nats in points], points=True)
        ]
        timed = {(row["name"], row["link"]): row["step_mean_s"] for row in self.rows}
        curve, mean = self.bench.curves.get(name), whole.get("step_s") or timed.get((name, link))
        if curve and mean:
            lines.insert(
                0,
                Line(
                    look,
                    [step * mean * scale for step in curve.steps],
                    curve.mean,
                    curve.low,
                    curve.high,
                    bare=True,
                ),
            )
        words = f"{name} on {link}, seed {whole.get('seed')}"
        label = {"s": "seconds", "min": "minutes", "h": "hours"}[unit]
        svg = curves(
            lines,
            (f"Predicted and measured loss: {words}", "A line: predicted; points: measured."),
            label,
        )
        return figure(svg, words, "Line: predicted. Points: measured.")


def _name_column(told: Told) -> Column:
    def cell(row: Mapping[str, Any]) -> Cell:
        errors = "".join(f'<span class="error">✗ {escape(error)}</span>' for error in row["errors"])
        return Cell(
            (
                f'<span class="who">{told.looks[row["name"]].swatch()}<span '
                f'class="name">{escape(row["name"])}</span></span>{errors}',
            ),
            (clean(row["name"]),),
        )

    return Head("contestant", number=False), cell


def _memory_column(rows: Sequence[Mapping[str, Any]]) -> Column:
    known = [row["peak_bytes"] for row in rows if row["peak_bytes"] is not None]
    scale, unit = (1e9, "GB") if known and statistics.median(known) >= 1e9 else (1e6, "MB")
    about = "Of the largest rank's process, torch and Python included"
    return Head("peak memory", unit, about), lambda row: Cell.number(
        None if row["peak_bytes"] is None else row["peak_bytes"] / scale
    )


def _kind(row: Mapping[str, Any]) -> Cell:
    if row["kind"] == "thinwire":
        return Cell(('<span class="chip ours">thinwire</span>',), ("thinwire",))
    return Cell(
        (f'<span class="chip">rival</span> <span class="soft">{escape(row["contestant"])}</span>',),
        (clean(f"rival {row['contestant']}"),),
    )


def _middle(row: Mapping[str, Any]) -> Cell:
    if row["step_median_s"] is None:
        return Cell.number(None)
    band = f'<span class="soft">[{sig(row["step_p10_s"])}–{sig(row["step_p90_s"])}]</span>'
    return Cell((f"{sig(row['step_median_s'])} {band}",), (row["step_median_s"],))


def _final(row: Mapping[str, Any]) -> Cell:
    if row["final_nats"] is None:
        return Cell.number(None)
    spread = (
        ""
        if row["final_spread"] is None
        else f' <span class="soft">± {row["final_spread"]:.4f}</span>'
    )
    return Cell((f"{row['final_nats']:.4f}{spread}",), (row["final_nats"],))


def _gap(row: Mapping[str, Any]) -> Cell:
    return Cell.number(row["gap"], "" if row["gap"] is None else f"{row['gap']:+.2%}"[:-1])


def _parts(row: Mapping[str, Any]) -> dict[str, float]:
    """Of a mean step: what is known, and the rest."""
    rest = row["step_mean_s"] - math.fsum(row["parts"].values())
    return dict(row["parts"]) | ({"untold": rest} if rest > 1e-3 * row["step_mean_s"] else {})
