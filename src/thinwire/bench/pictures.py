"""Draw the figures of a page: losses against seconds and bytes, parts of a step, whole runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from thinwire.bench.comparison import Comparison
from thinwire.bench.figures import Line, bars, curves
from thinwire.bench.looks import Look, clean, escape, sig
from thinwire.bench.page import Cell, Head, Row, figure, fixed, table, time_unit


def against_seconds(page: Comparison) -> str:
    """Draw losses against seconds, a picture for each link."""
    out = []
    for link in page.bench.links:
        # Only contestants that were timed on this link: steps × mean step are seconds.
        means = {
            row["name"]: row["step_mean_s"]
            for row in page.rows
            if row["link"] == link and row["step_mean_s"] is not None
        }
        lines = {
            name: (curve, [step * means[name] for step in curve.steps])
            for name, curve in page.bench.curves.items()
            if name in means
        }
        out.append(
            _picture(
                page,
                lines,
                link,
                "time",
                time_unit([max(x) for _, x in lines.values()]),
                page.attributes(link),
            )
        )
    return f'<div class="figures">{"".join(out)}</div>' if any(out) else ""


def against_bytes(page: Comparison) -> str:
    """Draw losses against the bytes that a rank has sent, one picture for all links."""
    lines = {}
    for name, curve in page.bench.curves.items():
        if sent := curve.bytes_at(curve.steps, page.bench.bytes_per_step(name)):
            lines[name] = curve, sent
    drawing = _picture(
        page,
        lines,
        "What a rank has sent" + (", over all links" if len(page.bench.links) > 1 else ""),
        "sent",
        (1e-6, "MB sent by a rank"),
        "",
    )
    return f'<div class="figures">{drawing}</div>' if drawing else ""


def _picture(
    page: Comparison,
    curves_at: Mapping[str, Any],
    words: str,
    what: str,
    unit: tuple[float, str],
    attributes: str,
) -> str:
    # Lines without any x above 0 have nothing to show on a log scale.
    scale, unit_name = unit
    lines = [
        Line(page.looks[name], [each * scale for each in x], curve.mean, curve.low, curve.high)
        for name, (curve, x) in curves_at.items()
        if max(x) > 0
    ]
    if not lines:
        return ""
    names = ", ".join(name for name, (_, x) in curves_at.items() if max(x) > 0)
    labels = (
        f"Validation loss against {what}: {words}",
        f"Lines of {names}. Bands: the least and the greatest of the seeds.",
    )
    label = (
        unit_name if what == "sent" else {"s": "seconds", "min": "minutes", "h": "hours"}[unit_name]
    )
    return figure(
        curves(lines, labels, label, [nats for _, nats in page.targets], page.bench.chosen),
        words,
        attributes=attributes,
    )


def breakdown(page: Comparison) -> str:
    """Draw bars of the steps' parts, a picture for each link."""
    out = []
    for link in page.bench.links:
        here = [row for row in page.rows if row["link"] == link and row["step_mean_s"] is not None]
        if not here:
            continue
        # The quickest first, in one unit for the link.
        here.sort(key=lambda row: row["step_mean_s"])
        scale, unit = (
            (1e3, "ms") if statistics.median(row["step_mean_s"] for row in here) < 1 else (1.0, "s")
        )
        bar_rows = [(row["name"], _parts(row), row["step_mean_s"]) for row in here]
        about = "; ".join(
            f"{name}: " + ", ".join(f"{part} {sig(s * scale)} {unit}" for part, s in parts.items())
            for name, parts, _ in bar_rows
        )
        out.append(
            figure(
                bars(bar_rows, (f"Parts of a step: {link}", about), scale, unit),
                link,
                attributes=page.attributes(link),
            )
        )
    return f'<div class="figures">{"".join(out)}</div>' if out else ""


def proof(page: Comparison) -> str:
    """Write how far predictions of whole runs were off; draw predicted and measured losses."""
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
    for whole in page.bench.wholes:
        name, link = (
            whole["name"],
            str(whole["link"]["name"] if isinstance(whole["link"], Mapping) else whole["link"]),
        )
        predicted, measured = whole.get("predicted_s"), whole.get("measured_s")
        off = measured / predicted - 1 if measured is not None and predicted else None
        error = f'<span class="error">{escape(whole["error"])}</span>' if whole.get("error") else ""
        cells = [
            Cell((f"{escape(name)}{error}",), (clean(name),)),
            Cell.words(link),
            Cell.words(whole.get("seed", "–")),
            fixed(whole.get("target"), 3),
            # A run that did not reach its target has no time.
            Cell.number(predicted),
            Cell.words("not reached") if measured is None and predicted else Cell.number(measured),
            Cell.number(off, f"{off or 0:+.1%}"[:-1]),
            Cell.words(
                {True: "yes, bit for bit", False: "no"}.get(whole.get("same_losses", ""), "–")
            ),
        ]
        rows.append(Row(cells))
        pictures.append(_proof_picture(page, whole, name, link))
    if not rows:
        return ""
    about = (
        "<p>A whole run over the link, its seconds counted from its first step. The line is "
        "the curve, each step as long as the mean "
        "of some steps timed apart: the way of all that stands above. The points were "
        "measured.</p>"
    )
    return (
        f'{about}{table("Whole runs", heads, rows)}<div class="figures">{"".join(pictures)}</div>'
    )


def _proof_picture(page: Comparison, whole: Mapping[str, Any], name: str, link: str) -> str:
    # Losses that are no number, and runs without any, have no picture.
    points = [
        (s, nats)
        for _, s, nats in whole.get("points") or []
        if nats is not None and math.isfinite(s) and math.isfinite(nats)
    ]
    if not points or max(s for s, _ in points) <= 0:
        return ""
    look = page.looks.get(name, Look(0, rival=False))
    scale, unit = time_unit([points[-1][0]])
    lines = [Line(look, [s * scale for s, _ in points], [nats for _, nats in points], points=True)]
    timed = {(row["name"], row["link"]): row["step_mean_s"] for row in page.rows}
    curve, mean = page.bench.curves.get(name), whole.get("step_s") or timed.get((name, link))
    # The prediction as a bare line under the points.
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


def _parts(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the parts of a mean step: what is known, and the rest."""
    rest = row["step_mean_s"] - math.fsum(row["parts"].values())
    return dict(row["parts"]) | ({"untold": rest} if rest > 1e-3 * row["step_mean_s"] else {})
