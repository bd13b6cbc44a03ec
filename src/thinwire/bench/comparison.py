"""Write the table, verdict and choices of a page that compares contestants."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from thinwire.bench.looks import Look, escape, sig
from thinwire.bench.page import NONE, STAR, Cell, Choice, Head, Row, each, legend, table, time_unit
from thinwire.bench.results import Bench

Column = tuple[Head, Callable[[Mapping[str, Any]], Cell]]


class Comparison:
    """Hold the rows of a page, and write what both kinds of page show of them."""

    def __init__(self, bench: Bench, rows: Sequence[Mapping[str, Any]]) -> None:
        self.bench, self.rows = bench, rows
        # One look for each name on the whole page: ours first, then rivals, the baseline last.
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
        """Return the HTML attributes by which a link is chosen."""
        links = list(self.bench.links)
        return f' data-link="{links.index(link)}"' if link in links and len(links) > 1 else ""

    def controls(self) -> str:
        """Write the choices that hold for the whole page; JavaScript shows them."""
        choices = []
        # The target changes which figures of a row are shown, the link which rows.
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
        """Write the rows under these columns."""
        rows = []
        for row in self.rows:
            wins = [str(at) for at, each in enumerate(row["targets"]) if each["winner"]]
            css = ' class="win"' if row["winner"] else ""
            marks = f' data-wins="{" ".join(wins)}"' if self.targets else ""
            rows.append(
                Row(
                    [cell(row) for _, cell in columns],
                    f"{css}{marks}{self.attributes(row['link'])}",
                )
            )
        return table(caption, [head for head, _ in columns], rows, self.bench.chosen)

    def verdict(self) -> str:
        """Write each link's winner in a sentence."""
        items = []
        for link in self.bench.links:
            here = [row for row in self.rows if row["link"] == link]
            texts = []
            # A sentence for each target; the page shows that of the chosen one.
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
        """Return the column of seconds to the target; the winner has a star."""

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
        """Return the column of speed-ups over the baseline's time to the same target."""

        def cell(row: Mapping[str, Any]) -> Cell:
            values = tuple(each["speedup"] for each in row["targets"]) or (None,)
            return Cell(tuple(NONE if value is None else sig(value) for value in values), values)

        return Head("speed-up", unit, "How many times sooner at the target loss", large=True), cell

    def bytes_column(self) -> Column:
        """Return the column of bytes that a rank has sent at the target."""
        # GB only if most are as large; one unit for the whole column.
        sent_bytes = [
            each["bytes"] for row in self.rows for each in row["targets"] if each["bytes"]
        ]
        scale, unit = (
            (1e9, "GB") if sent_bytes and statistics.median(sent_bytes) >= 1e9 else (1e6, "MB")
        )

        def cell(row: Mapping[str, Any]) -> Cell:
            values = tuple(each["bytes"] for each in row["targets"]) or (None,)
            return Cell(
                tuple(NONE if value is None else sig(value / scale) for value in values), values
            )

        return Head("sent to target", f"{unit}, by a rank"), cell

    def legend(self) -> str:
        """Write the legend of the contestants that have a curve."""
        return legend(
            [
                (look.number, look.swatch(), name)
                for name, look in self.looks.items()
                if name in self.bench.curves
            ]
        )
