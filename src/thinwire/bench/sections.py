"""Write the page of a bench and the page of training runs, out of the parts in `page.py`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from thinwire.bench.comparison import Column, Comparison
from thinwire.bench.figures import parts_legend
from thinwire.bench.looks import clean, escape, sig
from thinwire.bench.notes import cautions, details, failures, measurement_notes, opening, reproduce
from thinwire.bench.page import (
    Cell,
    Head,
    document,
    fixed,
    section,
    so_many,
    time_unit,
)
from thinwire.bench.pictures import against_bytes, against_seconds, breakdown, proof
from thinwire.bench.results import Bench


def bench_sections(bench: Bench, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the page of a bench.

    Args:
        bench: its records, sorted out.
        rows: as `thinwire.bench.report.summary` returns them.
    """
    page = Comparison(bench, rows)
    ours = sum(each == "thinwire" for each in bench.contestants.values())
    title = (
        f"thinwire bench: {so_many(ours, 'strategy', 'strategies')} and "
        f"{so_many(len(bench.contestants) - ours, 'rival')}"
    )
    columns = (
        _name_column(page),
        (
            Head("link", number=False),
            lambda row: Cell.words("–" if row["link"] is None else row["link"]),
        ),
        (Head("kind", number=False), _kind),
        page.time_column(),
        page.speedup_column(f"× of {bench.baseline}" if bench.baseline else "×"),
        (Head("step, median", "s [p10–p90]"), _middle),
        (Head("step, mean", "s"), lambda row: Cell.number(row["step_mean_s"])),
        (Head("tokens/s", "all ranks", large=True), lambda row: Cell.number(row["tokens_per_s"])),
        (
            Head("fewer bytes", "× of dense fp32", large=True),
            lambda row: Cell.number(row["fewer_bytes"]),
        ),
        (Head("final loss", "nats a token ± sd"), _final),
        (Head("gap to dense", "%"), _gap),
        page.bytes_column(),
        _memory_column(rows),
    )
    return document(
        title,
        f"<h1>{escape(title)}</h1>",
        opening(bench),
        cautions(bench),
        page.controls(),
        section(
            "Which wins on which link",
            page.verdict(),
            page.table("One row a link and contestant; ★ is first to the target", columns),
        ),
        section("Loss against seconds", page.legend(), against_seconds(page)),
        section("Loss against bytes", page.legend(), against_bytes(page)),
        section(
            "Where a step's time goes",
            '<p class="quiet">Parts are means of rank 0; a tick is the mean step of all ranks. '
            "What a library does not tell apart is grey.</p>",
            parts_legend(),
            breakdown(page),
        ),
        section("Proof: whole runs against the prediction", proof(page)),
        section("Notes on the bench", measurement_notes(bench, page)),
        section("Errors", failures(bench)),
        section("Reproduce", reproduce(bench)),
    )


def runs_sections(
    bench: Bench,
    rows: Sequence[Mapping[str, Any]],
    runs: Mapping[str, Any],
    differ: Mapping[str, Sequence[Any]],
) -> str:
    """Write the page of training runs.

    Args:
        bench: their records, sorted out.
        rows: as `thinwire.bench.report.summary` returns them.
        runs: by name, as their run.json has them.
        differ: settings that should be alike in all runs, and are not.
    """
    page = Comparison(bench, rows)
    first = str(bench.baseline)
    title = f"thinwire: {so_many(len(runs), 'training run')}"
    result = {name: run["result"] for name, run in runs.items()}
    scale, unit = time_unit([each["train_s"] for each in result.values()])

    def time_share(part: str) -> Callable[[Mapping[str, Any]], Cell]:
        return lambda row: Cell.number(
            result[row["name"]]["time_shares"][part],
            f"{result[row['name']]['time_shares'][part]:.1%}"[:-1],
        )

    columns = (
        _name_column(page),
        (Head("final loss", "nats a token"), _final),
        (Head("gap to the first", "%"), _gap),
        page.time_column(),
        page.speedup_column("× of the first"),
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
        page.bytes_column(),
        *(
            (Head(words, "% of time"), time_share(part))
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
        page.controls(),
        section(
            "Which wins",
            page.verdict(),
            page.table("One row a run; ★ is first to the target", columns),
        ),
        section("Loss against seconds", page.legend(), against_seconds(page)),
        section("Loss against bytes", page.legend(), against_bytes(page)),
        section("Where a step's time goes", parts_legend(), breakdown(page)),
        section("Reproduce", *settings),
    )


def _name_column(page: Comparison) -> Column:
    def cell(row: Mapping[str, Any]) -> Cell:
        errors = "".join(f'<span class="error">✗ {escape(error)}</span>' for error in row["errors"])
        return Cell(
            (
                f'<span class="who">{page.looks[row["name"]].swatch()}<span '
                f'class="name">{escape(row["name"])}</span></span>{errors}',
            ),
            (clean(row["name"]),),
        )

    return Head("contestant", number=False), cell


def _memory_column(rows: Sequence[Mapping[str, Any]]) -> Column:
    peaks = [row["peak_bytes"] for row in rows if row["peak_bytes"] is not None]
    scale, unit = (1e9, "GB") if peaks and statistics.median(peaks) >= 1e9 else (1e6, "MB")
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
